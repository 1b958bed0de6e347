// Browsers refuse workers to pages that were opened from a disk. There, the script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    onmessage = null;
    onerror = null;

    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.tell(new MessageEvent("message", { data })));
      const script = inside.document.createElement("script");
      script.src = new URL(url, document.baseURI).href;
      this.ready = new Promise((done, failed) => {
        script.onload = done;
        script.onerror = () => failed(this.tell(new ErrorEvent("error", { message: `cannot load ${script.src}` })));
      });
      inside.document.documentElement.append(script);
    }

    tell(event) {
      this.dispatchEvent(event);
      const own = this[`on${event.type}`];
      if (own) own.call(this, event);
    }

    postMessage(data) {
      const inside = this.frame.contentWindow;
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

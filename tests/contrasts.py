"""For tests in a browser: can what is written be read?"""

#: For every text of a selector its class, its first letters, and the contrast with what lies behind it (WCAG 2),
#: worst first; opacities count. Run it in a page: `page.evaluate(CONTRASTS, ".llp *")`.
CONTRASTS = """selector => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const seen = () => light(pen.getImageData(0, 0, 1, 1).data);
  const fill = (colour, alpha) => { pen.globalAlpha = alpha; pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); };
  const found = [];
  for (const element of document.querySelectorAll(selector)) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest('select')) continue;
    const above = [];
    for (let at = element; at; at = at.parentElement) above.unshift(at);
    fill(matchMedia('(prefers-color-scheme: dark)').matches ? '#111' : '#fff', 1);
    let alpha = 1;
    for (const one of above) {
      alpha *= Number(getComputedStyle(one).opacity);
      fill(getComputedStyle(one).backgroundColor, alpha);
    }
    const behind = seen();
    const style = getComputedStyle(element);
    fill(element instanceof SVGElement ? style.fill : style.color, alpha);
    const ink = seen();
    const ratio = (Math.max(ink, behind) + 0.05) / (Math.min(ink, behind) + 0.05);
    const name = element.className?.baseVal ?? element.className;
    found.push([String(name), element.textContent.slice(0, 30), Math.round(100 * ratio) / 100]);
  }
  return found.sort((a, b) => a[2] - b[2]);
}"""

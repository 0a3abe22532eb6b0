// A card as a figure for a paper: drawn from what is on the page, on white, with the type and the measures of `export_figure`. Before it stands parts.js.
const paper = { ink: '#1b1f24', grey: '#636b74', line: '#d5d9de', up: '#d9560b', down: '#2b6cb0' }
const mono = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace", sans = 'system-ui, sans-serif'
const written = t => visible(t).replace(/[\ufffe\uffff]/g, '\ufffd') // the two that XML forbids
const cells = s => Array.from(s).reduce((n, c) => n + (/\p{M}/u.test(c) ? 0 : /\p{Emoji_Presentation}|[\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u.test(c) ? 2 : 1), 0)
const short = (s, n) => { const c = Array.from(s); return c.length <= n ? s : c.slice(0, n - 1).join('') + '…' }
const words = (parent, x, y, s, { size = 10, fill = paper.grey, anchor = 'start' } = {}) => draw(parent, 'text', { x, y, 'font-size': size, fill, 'text-anchor': anchor }, written(s))
const rule = (parent, x1, x2, y) => draw(parent, 'line', { x1, x2, y1: y, y2: y, stroke: paper.line })

const figure_token = (g, x, y, text, v, vmax, peak) => {
  const s = written(text).replace(/ /g, '\u00a0') || '∅', w = 6.6 * Math.max(1, cells(s)), share = vmax > 0 && Number.isFinite(v) && v ? Math.min(1, Math.abs(v) / vmax) : 0
  if (share) draw(g, 'rect', { x, y: y - 10, width: w, height: 13.5, fill: v < 0 ? paper.down : paper.up, 'fill-opacity': (.08 + .72 * share).toFixed(2) })
  draw(g, 'text', { x, y, 'font-size': 11, fill: paper.ink, textLength: w, lengthAdjust: 'spacingAndGlyphs', 'font-family': mono, ...(peak ? { 'font-weight': 700 } : {}) }, s)
  return w
}
const figure_rows = (g, rows, width, y, vmax) => {
  for (const r of rows) {
    words(g, 38, y, short(r.label, 7), { anchor: 'end' })
    let x = 46
    r.tokens.forEach((t, j) => {
      const w = 6.6 * Math.max(1, cells(written(t)))
      if (x + w > width && x > 46) { x = 46; y += 15 }
      x += figure_token(g, x, y, t, r.values[j], vmax, j === r.peak)
    })
    rule(g, 46, width, y + 5); y += 19
  }
  return y
}
const figure_tokens = (g, rows, x, y, width, title) => {
  words(g, x, y, title); y += 18
  for (const [t, v] of rows) {
    words(g, x, y, short(written(t), 24), { size: 11, fill: paper.ink }).setAttribute('font-family', mono)
    words(g, x + width, y, show(v, 3, true), { size: 11, fill: v < 0 ? paper.down : paper.up, anchor: 'end' })
    rule(g, x, x + width, y + 5); y += 18
  }
  return y
}
const figure_bars = (g, h, x, y, width) => {
  const s = draw(g, 'svg', { x, y, width, height: 104, viewBox: `0 0 ${width} 104` })
  bars(s, h.lo, h.hi, h.counts, { width })
  for (const b of s.querySelectorAll('rect')) b.setAttribute('fill', paper.up)
  for (const b of s.querySelectorAll('text')) b.setAttribute('fill', paper.grey)
  for (const b of s.querySelectorAll('line')) b.setAttribute('stroke', paper.line)
}

// `c` has feature, title, note, stats [value, interval, text], histogram {lo, hi, counts}, up and down [token, effect], groups {title, rows {label, tokens, values, peak}}, near (lines of text), vmax
const card_figure = (c, width = 860, most = 24) => {
  const g = draw(null, 'g')
  words(g, 0, 14, `${c.feature}  ${short(written(c.title), 60)}`, { size: 16, fill: paper.ink })
  let right = 0
  for (const [value, interval, text] of c.stats) {
    const big = value + (interval ? ' ' + interval : '')
    words(g, right, 40, big, { size: 14, fill: paper.ink }); words(g, right, 54, text)
    right += Math.max(8.2 * big.length, 5.6 * text.length) + 22
  }
  const said = short(written(c.note ?? ''), 300)
  width = Math.max(width, Math.ceil(right), Math.ceil(5.6 * said.length))
  if (c.note) words(g, 0, 72, said)
  const top = c.note ? 92 : 78, col = Math.floor((width - 40) / 3), ends = [top + 112]
  if (c.histogram) { words(g, 0, top, 'Activation, when active'); figure_bars(g, c.histogram, 0, top + 6, col) }
  ;[[c.up, 'Raises these next tokens'], [c.down, 'Lowers these']].forEach(([rows, title], k) => { if (rows) ends.push(figure_tokens(g, rows.slice(0, 6), (k + 1) * (col + 20), top, col - 10, title)) })
  let y = Math.max(...ends) + 14, left = most
  for (const { title, rows } of c.groups) {
    if (left <= 0) { words(g, 0, y, 'and more groups'); y += 16; break }
    words(g, 0, y, title)
    y = figure_rows(g, rows.slice(0, left), width, y + 20, c.vmax)
    if (rows.length > left) { words(g, 46, y, `${left} of ${rows.length} rows`); y += 16 }
    left -= rows.length; y += 4
  }
  for (const line of c.near ?? []) { words(g, 0, y + 8, short(written(line), Math.floor(width / 5.2))); y += 16 }
  const w = width + 24, h = Math.round(y + 10) + 24, svg = draw(null, 'svg', { viewBox: `-12 -12 ${w} ${h}`, width: w, height: h, 'font-family': sans, role: 'img', 'aria-label': written(`feature ${c.feature}, ${c.title}`) })
  draw(svg, 'rect', { x: -12, y: -12, width: w, height: h, fill: '#fff' })
  svg.append(g)
  return svg
}
const svg_text = svg => new XMLSerializer().serializeToString(svg)
// The browser itself draws the picture: what is SVG becomes pixels on a canvas
const svg_png = async (svg, scale = 2) => {
  const image = new Image(), canvas = document.createElement('canvas')
  image.src = 'data:image/svg+xml;charset=utf-8,' + encodeURIComponent(svg_text(svg))
  await image.decode()
  canvas.width = Math.round(svg.getAttribute('width') * scale); canvas.height = Math.round(svg.getAttribute('height') * scale)
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height)
  return await new Promise((good, bad) => canvas.toBlob(b => b ? good(b) : bad(new Error('the picture is too large for this browser: choose a smaller scale')), 'image/png'))
}
const download = (name, blob) => {
  const a = document.createElement('a')
  a.href = URL.createObjectURL(blob); a.download = name
  document.body.append(a); a.click(); a.remove()
  setTimeout(() => URL.revokeObjectURL(a.href), 30000)
}

// A button that opens a row of choices; `card()` gives what is drawn, `numbers(kind)` a text or its promise
const exporter = (bar, under, { card, numbers }) => {
  const open = button(bar, 'Export', 'Export this card: figure and numbers', () => toggle(box.hidden)), box = add(under, 'div', 'snb-export')
  box.hidden = true; box.setAttribute('role', 'group'); box.setAttribute('aria-label', 'export')
  open.setAttribute('aria-expanded', false); open.classList.add('snb-open')
  const field = (name, value, min, max) => {
    const l = add(box, 'label', '', name + ' '), i = add(l, 'input')
    i.type = 'number'; i.min = min; i.max = max; i.value = value; i.step = 'any'
    i.addEventListener('keydown', e => { if (e.key !== 'Escape') e.stopPropagation() })
    return () => { const v = Math.max(min, Math.min(max, Number(i.value) || value)); i.value = v; return v }
  }
  const width = field('width', 860, 300, 4000), scale = field('pixels of each', 2, .5, 8)
  const said = document.createElement('span')
  const give = (kind, make) => button(box, kind.toUpperCase(), `Download ${kind.toUpperCase()}`, async () => {
    said.textContent = ''
    try { const c = card(), name = `feature-${c.feature}.${kind}`; download(name, await make(c)); said.textContent = name }
    catch (e) { said.textContent = `Not written: ${e.message}` }
  })
  give('svg', c => new Blob([svg_text(card_figure(c, width()))], { type: 'image/svg+xml' }))
  give('png', c => svg_png(card_figure(c, width()), scale()))
  for (const kind of ['csv', 'json']) give(kind, async () => new Blob([await numbers(kind)], { type: kind === 'csv' ? 'text/csv' : 'application/json' }))
  box.append(said); said.className = 'snb-c'; said.setAttribute('role', 'status')
  const toggle = on => { box.hidden = !on; open.setAttribute('aria-expanded', on); said.textContent = ''; if (on) box.querySelector('input').focus() }
  box.addEventListener('keydown', e => { if (e.key === 'Escape') { toggle(false); open.focus(); e.preventDefault(); e.stopPropagation() } })
  return toggle
}

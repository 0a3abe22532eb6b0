// Token heat: texts coloured by a number per token. Everything shown goes through textContent.
const unseen = /[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g
const signs = { '\n': '↵', '\t': '⇥', '\r': '␍' }
const sign = c => signs[c] ?? (c.codePointAt(0) < 256 ? '\\x' + c.charCodeAt(0).toString(16).padStart(2, '0') : '\\u' + c.codePointAt(0).toString(16).padStart(4, '0'))
const visible = t => t.replace(unseen, sign)

const add = (parent, tag, cls, text) => {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  if (text !== undefined) e.textContent = text
  return parent ? parent.appendChild(e) : e
}

export const show = (v, digits = 4) => {
  if (!Number.isFinite(v)) return Number.isNaN(v) ? '–' : v > 0 ? '∞' : '−∞'
  const a = Math.abs(v)
  const s = v && (a < 1e-4 || a >= 1e7) ? v.toExponential(2).replace('e+', 'e') : a >= 1000 ? Math.round(v).toLocaleString('en-US') : String(Number(v.toPrecision(digits)))
  return s.replace('-', '−')
}

// One token; its signs are faint, a line break is followed by a mark that a style may turn into a real break
const fill = (span, t) => {
  if (t === '') { add(span, 'i', 'w', '∅'); return }
  let at = 0
  for (const m of t.matchAll(unseen)) {
    if (m.index > at) span.append(t.slice(at, m.index))
    add(span, 'i', m[0] === '\n' ? 'w nl' : 'w', sign(m[0]))
    at = m.index + m[0].length
  }
  if (at < t.length) span.append(t.slice(at))
}

function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-live')
  const bar = add(root, 'div', 'snb-b')
  const title = add(bar, 'span', 'snb-h')
  const read = add(bar, 'span', 'snb-read')
  const breaks = add(bar, 'button', 'snb-tog', '¶')
  breaks.type = 'button'; breaks.title = 'show line breaks'; breaks.setAttribute('aria-label', 'show line breaks')
  const legend = add(bar, 'span', 'snb-l')
  const lo = add(legend, 'span'), _ = add(legend, 'i'), hi = add(legend, 'span')
  legend.setAttribute('role', 'img')
  const grid = add(root, 'div', 'snb-grid')
  grid.setAttribute('role', 'grid'); grid.setAttribute('aria-readonly', 'true')
  const foot = add(root, 'div', 'snb-c')
  let rows, spans = [], values = [], focus = [0, 0]

  const floats = () => {
    const b = model.get('values')
    const bytes = b?.buffer ? b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength) : new ArrayBuffer(0)
    return new Float32Array(bytes, 0, bytes.byteLength >> 2)
  }
  const build = () => {
    rows = model.get('rows'); spans = []; focus = [0, 0]
    const labels = model.get('labels'), heads = new Map(model.get('heads'))
    const parts = []
    rows.forEach((row, i) => {
      if (heads.has(i)) parts.push(add(null, 'div', 'snb-q', visible(heads.get(i))))
      const line = add(null, 'div', labels.length ? 'snb-x' : 'snb-x one')
      line.setAttribute('role', 'row')
      if (labels.length) { const b = add(line, 'b', '', visible(labels[i])); b.title = b.textContent; b.setAttribute('role', 'rowheader') }
      const text = add(line, 'span')
      text.setAttribute('role', 'presentation')
      spans.push(row.map((t, j) => {
        const s = add(text, 'span', 'k')
        s.dataset.at = i + ',' + j; s.tabIndex = -1; s.setAttribute('role', 'gridcell')
        fill(s, t)
        return s
      }))
      parts.push(line)
    })
    if (!rows.length) parts.push(add(null, 'div', 'snb-c', visible(model.get('empty'))))
    grid.replaceChildren(...parts)
    const first = spans.find(r => r.length)
    if (first) first[0].tabIndex = 0
  }
  const paint = () => {
    const all = floats(), vmax = model.get('vmax'), peaks = model.get('peaks')
    let at = 0, signed = false
    values = spans.map((row, i) => {
      const mine = all.subarray(at, at += row.length)
      row.forEach((s, j) => {
        const v = mine[j], w = vmax > 0 && Number.isFinite(v) && v ? Math.round(8 + 72 * Math.min(1, Math.abs(v) / vmax)) : 0
        if (v < 0) signed = true
        s.className = 'k' + (w ? v < 0 ? ' n' : ' h' : '') + (peaks[i] === j ? ' p' : '')
        if (w) s.style.setProperty('--v', w + '%'); else s.style.removeProperty('--v')
      })
      return mine
    })
    legend.className = signed ? 'snb-l two' : 'snb-l'
    legend.style.visibility = breaks.style.visibility = rows.length ? '' : 'hidden'
    lo.textContent = signed ? show(-vmax, 3) : '0'; hi.textContent = show(vmax, 3)
    legend.setAttribute('aria-label', `colour scale from ${lo.textContent} to ${hi.textContent}`)
    mark()
  }
  const words = () => {
    title.textContent = visible(model.get('title')); title.hidden = !title.textContent
    foot.textContent = visible(model.get('caption')); foot.hidden = !foot.textContent
    grid.setAttribute('aria-label', title.textContent || 'tokens')
    const on = model.get('breaks')
    breaks.setAttribute('aria-pressed', on); root.classList.toggle('breaks', on)
  }
  const tell = (i, j) => `${visible(rows[i][j])} · position ${j} · ${show(values[i]?.[j] ?? NaN)}` + (model.get('more')?.(i, j) ?? '') // a page may know more of a token
  const span = p => p.length === 2 ? spans[p[0]]?.[p[1]] : undefined
  const mark = () => {
    for (const s of grid.querySelectorAll('.sel')) { s.classList.remove('sel'); s.removeAttribute('aria-selected') }
    const p = model.get('selected'), s = span(p)
    if (s) { s.classList.add('sel'); s.setAttribute('aria-selected', 'true') }
    read.textContent = s ? tell(...p) : ''
  }
  const place = s => s.dataset.at.split(',').map(Number)
  const select = p => {
    const now = model.get('selected')
    model.set('selected', now[0] === p[0] && now[1] === p[1] ? [] : p); model.save_changes()
  }
  // hovering is frequent: the kernel hears of it at most every 60 ms
  let wait = 0
  const hover = p => {
    read.textContent = p.length ? tell(...p) : span(model.get('selected')) ? tell(...model.get('selected')) : ''
    clearTimeout(wait)
    wait = setTimeout(() => { model.set('hovered', p); model.save_changes() }, 60)
  }
  const reach = (i, j) => {
    const s = spans[i]?.[j]
    if (!s) return
    const old = span(focus)
    if (old) old.tabIndex = -1
    focus = [i, j]; s.tabIndex = 0; s.setAttribute('aria-label', tell(i, j)); s.focus()
  }
  const last = i => (spans[i]?.length ?? 0) - 1
  const filled = (i, d) => { do i += d; while (spans[i] && !spans[i].length); return i }
  const keys = {
    ArrowRight: ([i, j]) => j < last(i) ? [i, j + 1] : [filled(i, 1), 0], ArrowLeft: ([i, j]) => j ? [i, j - 1] : [filled(i, -1), Math.max(0, last(filled(i, -1)))],
    ArrowDown: ([i, j]) => [filled(i, 1), Math.max(0, Math.min(j, last(filled(i, 1))))], ArrowUp: ([i, j]) => [filled(i, -1), Math.max(0, Math.min(j, last(filled(i, -1))))],
    Home: ([i]) => [i, 0], End: ([i]) => [i, last(i)],
  }
  grid.addEventListener('mouseover', e => {
    const s = e.target.closest('.k')
    if (!s) return
    const p = place(s)
    s.title = tell(...p); hover(p)
  })
  grid.addEventListener('mouseleave', () => hover([]))
  grid.addEventListener('click', e => { const s = e.target.closest('.k'); if (s) { const p = place(s); reach(...p); select(p) } })
  grid.addEventListener('focusin', e => { const s = e.target.closest('.k'); if (s) { const p = place(s); s.setAttribute('aria-label', tell(...p)); read.textContent = tell(...p) } })
  grid.addEventListener('keydown', e => {
    const s = e.target.closest('.k')
    if (!s || e.altKey || e.ctrlKey || e.metaKey) return
    if (keys[e.key]) reach(...keys[e.key](place(s)))
    else if (e.key === 'Enter' || e.key === ' ') select(place(s))
    else if (e.key === 'Escape' && model.get('selected').length) { model.set('selected', []); model.save_changes() }
    else return
    e.preventDefault(); e.stopPropagation()
  })
  breaks.addEventListener('click', () => { model.set('breaks', !model.get('breaks')); model.save_changes() })

  const draw = () => { if (model.get('rows') !== rows || model.get('labels') !== drawn.labels || model.get('heads') !== drawn.heads) { remember(); build() } words(); paint() }
  const drawn = {}
  const remember = () => { drawn.labels = model.get('labels'); drawn.heads = model.get('heads') }
  draw()
  const on = { 'change:version': draw, 'change:selected': mark, 'change:breaks': words, 'change:title change:caption': words }
  for (const [k, f] of Object.entries(on)) model.on(k, f)
  return () => { clearTimeout(wait); for (const [k, f] of Object.entries(on)) model.off(k, f) }
}
export default { render }

// What the live panels share beyond `parts.js`, which is set before this: fields and a strip of tokens.
const about = t => visible(t.replace(/^ +| +$/g, '')) || '␣'.repeat(t.length) || '∅'
const floats = view => { const b = new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice(); return new Float32Array(b.buffer, 0, b.byteLength >> 2) }
// Keys typed into a field are the field's own
const own = e => e.stopPropagation()
const labelled = (parent, words, field) => {
  const l = add(parent, 'label', 'snb-f')
  add(l, 'span', '', words)
  l.append(field)
  return field
}
const number = (value, step, min) => {
  const e = add(null, 'input')
  e.type = 'number'; e.step = step; e.value = value
  if (min !== undefined) e.min = min
  e.addEventListener('keydown', own)
  return e
}

// A field whose text is sent to the model after a pause; one that is set elsewhere is shown while nobody types
const typing = (area, model, least = 2, name = 'text') => {
  let wait = 0
  const grow = () => { area.rows = Math.max(least, Math.min(8, area.value.split('\n').length)) }
  const send = () => { clearTimeout(wait); if (model.get(name) !== area.value) put(model, { [name]: area.value }) }
  const told = () => { if (document.activeElement !== area) { area.value = model.get(name); grow() } }
  area.addEventListener('keydown', own)
  area.addEventListener('input', () => { grow(); clearTimeout(wait); wait = setTimeout(send, model.get('patience') ?? 150) })
  area.addEventListener('blur', send)
  area.value = model.get(name); grow()
  return { told, send, stop: () => clearTimeout(wait) }
}
// Rows of tokens: pointer, arrows and Enter reach each; `choose(row, position)` is told, `tip(row, position)` names one
function strip(parent, label, { choose, tip, leave }) {
  const grid = add(parent, 'div', 'snb-grid')
  grid.setAttribute('role', 'grid'); grid.setAttribute('aria-readonly', 'true'); grid.setAttribute('aria-label', label)
  let spans = [], at = [0, 0]
  const build = (rows, labels = []) => {
    spans = []; at = [0, 0]
    grid.replaceChildren(...rows.map((row, i) => {
      const line = add(null, 'div', labels.length ? 'snb-x' : 'snb-x one')
      line.setAttribute('role', 'row')
      if (labels.length) add(line, 'b', '', labels[i]).setAttribute('role', 'rowheader')
      const text = add(line, 'span')
      text.setAttribute('role', 'presentation')
      spans.push(row.map((t, j) => {
        const s = fill(add(text, 'span', 'k'), t)
        s.dataset.at = i + ',' + j; s.tabIndex = -1; s.setAttribute('role', 'gridcell')
        return s
      }))
      return line
    }))
    const first = spans.find(r => r.length)
    if (first) first[0].tabIndex = 0
  }
  const paint = (values, vmax) => {
    let k = 0
    for (const row of spans) {
      const mine = values.subarray(k, k += row.length), peak = mine.reduce((b, v, j) => Math.abs(v) > Math.abs(mine[b]) ? j : b, 0)
      row.forEach((s, j) => {
        const v = mine[j], w = vmax > 0 && v ? Math.round(8 + 72 * Math.min(1, Math.abs(v) / vmax)) : 0
        s.classList.toggle('h', w > 0 && v > 0); s.classList.toggle('n', w > 0 && v < 0); s.classList.toggle('p', w > 0 && j === peak)
        if (w) s.style.setProperty('--v', w + '%'); else s.style.removeProperty('--v')
      })
    }
  }
  const mark = places => {
    const on = new Set(places.map(String))
    for (const row of spans) for (const s of row) {
      s.classList.toggle('sel', on.has(s.dataset.at))
      if (on.has(s.dataset.at)) s.setAttribute('aria-selected', 'true'); else s.removeAttribute('aria-selected')
    }
  }
  const place = s => s.dataset.at.split(',').map(Number)
  const reach = (i, j) => {
    const s = spans[i]?.[j]
    if (!s) return
    const old = spans[at[0]]?.[at[1]]
    if (old) old.tabIndex = -1
    at = [i, j]; s.tabIndex = 0; s.focus()
  }
  const last = i => (spans[i]?.length ?? 0) - 1
  const moves = { ArrowRight: (i, j) => j < last(i) ? [i, j + 1] : [i + 1, 0], ArrowLeft: (i, j) => j ? [i, j - 1] : [i - 1, last(i - 1)], ArrowDown: (i, j) => [i + 1, Math.min(j, last(i + 1))], ArrowUp: (i, j) => [i - 1, Math.min(j, last(i - 1))], Home: i => [i, 0], End: i => [i, last(i)] }
  const cell = e => e.target.closest('.k')
  const name = e => { const s = cell(e); if (s) { const t = tip(...place(s)); s.title = t; s.setAttribute('aria-label', t) } }
  grid.addEventListener('mouseover', name)
  grid.addEventListener('focusin', name)
  grid.addEventListener('click', e => { const s = cell(e); if (s) { reach(...place(s)); choose(...place(s)) } })
  grid.addEventListener('keydown', e => {
    const s = cell(e)
    if (!s || e.altKey || e.ctrlKey || e.metaKey) return
    if (moves[e.key]) reach(...moves[e.key](...place(s)))
    else if (e.key === 'Enter' || e.key === ' ') choose(...place(s))
    else if (e.key === 'Escape') leave?.()
    else return
    e.preventDefault(); e.stopPropagation()
  })
  return { grid, build, paint, mark }
}

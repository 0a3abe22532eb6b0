// A text through a lens: layers against positions, the likeliest next token in every cell; what is beside the table follows the pointer.
function render({ model, el }) {
  const still = !!model.get('still'), get = k => model.get(k)
  const root = add(el, 'div', 'snb snb-panel snb-lens')
  const bar = add(root, 'div', 'snb-b')
  const title = add(bar, 'span', 'snb-h')
  const choice = (label, names, act) => {
    const box = add(bar, 'span', 'snb-two')
    box.setAttribute('role', 'group'); box.setAttribute('aria-label', label)
    const all = names.map(n => { const b = add(box, 'button', '', n); b.type = 'button'; b.addEventListener('click', () => act(n)); return b })
    return now => all.forEach(b => b.setAttribute('aria-pressed', b.textContent === now))
  }
  const set = (k, v) => { model.set(k, v); model.save_changes() }
  const lenses = get('kinds').length > 1 ? choice('lens', get('kinds'), k => set('kind', k)) : () => {}
  add(bar, 'span', 'sp')
  const said = add(bar, 'span', 'snb-c'); said.setAttribute('aria-live', 'polite')
  const area = add(root, 'textarea')
  area.rows = 2; area.spellcheck = false; area.setAttribute('aria-label', 'text to read'); area.placeholder = 'Type or paste a text; what each layer would say next follows.'
  area.hidden = still
  const wrong = add(root, 'div', 'snb-wrong'); wrong.setAttribute('role', 'alert')
  const tools = add(root, 'div', 'snb-b snb-lens-b')
  add(tools, 'span', 'snb-c', 'Colour')
  const paints = (() => { const was = bar.lastChild, f = choice('colour of the cells', get('colours'), c => set('colour', c)); tools.append(bar.lastChild); return f })()
  add(tools, 'span', 'sp')
  const legend = add(tools, 'span', 'snb-l'), lo = add(legend, 'span'), ramp = add(legend, 'i'), hi = add(legend, 'span')
  legend.setAttribute('role', 'img')
  const body = add(root, 'div', 'snb-split')
  const left = add(body, 'div', 'snb-lens-o'), side = add(body, 'div', 'snb-side')
  const grid = add(left, 'table', 'snb-lens-t')
  grid.setAttribute('role', 'grid'); grid.setAttribute('aria-readonly', 'true'); grid.setAttribute('aria-label', 'likeliest next token by layer and position')
  const head = add(side, 'div', 'snb-q'), facts = add(side, 'div', 'snb-c snb-lens-f'), list = add(side, 'div', 'snb-lens-l'), hint = add(side, 'div', 'snb-c')
  const note = add(root, 'div', 'snb-c')

  let d = null, cells = [], at = [0, 0], over = null
  const load = () => {
    const raw = k => { const v = get(k); return new Uint8Array(v.buffer, v.byteOffset, v.byteLength).slice().buffer }
    d = { layers: get('layers'), words: get('words'), names: get('names'), n: get('n'), top: new Uint32Array(raw('top')), prob: new Float32Array(raw('prob')), kl: new Float32Array(raw('kl')), entropy: new Float32Array(raw('entropy')), rank: new Float32Array(raw('rank')) }
    d.T = d.words.length; d.R = d.layers.length
  }
  const number = i => d.layers[i] === 'embed' ? -1 : Number(d.layers[i])
  const where = i => d.layers[i] === 'embed' ? 'before layer 0' : `after layer ${d.layers[i]}`
  const best = (i, t) => d.names[d.top[(i * d.T + t) * d.n]], p1 = (i, t) => d.prob[(i * d.T + t) * d.n]
  const part = p => p >= .995 ? '1' : p < .005 ? '0' : p.toFixed(2).slice(1)
  // how full the colour of a cell is, and the ends of the scale
  const scale = () => {
    const most = a => a.reduce((m, v) => Math.max(m, v), 0)
    const c = get('colour'), k = c === 'KL' ? most(d.layers[0] === 'embed' && d.R > 2 ? d.kl.subarray(d.T) : d.kl) : c === 'entropy' ? most(d.entropy) : 0, ranks = Math.max(2, most(d.rank))
    if (c === 'KL') return { of: j => k ? d.kl[j] / k : 0, lo: '0', hi: `${most(d.kl) > k ? '≥ ' : ''}${show(k, 3)} nats` } // what enters the first block is far beyond the rest, and would leave them white
    if (c === 'entropy') return { of: j => k ? d.entropy[j] / k : 0, lo: '0', hi: show(k, 3) + ' nats' }
    if (c === 'rank of next') return { of: j => d.rank[j] ? 1 - Math.log(d.rank[j]) / Math.log(ranks) : 0, lo: `rank ${show(ranks, 4)}`, hi: '1, the likeliest' }
    return { of: j => d.prob[j * d.n], lo: '0', hi: '1' }
  }
  const small = (i, t) => {
    const c = get('colour'), j = i * d.T + t
    return c === 'KL' ? show(d.kl[j], 2) : c === 'entropy' ? show(d.entropy[j], 2) : c === 'rank of next' ? (d.rank[j] ? '#' + show(d.rank[j]) : '–') : part(p1(i, t))
  }
  const token = (e, t) => {
    const n = t.length - t.replace(/^ +/, '').length
    if (n && n === t.length) { e.replaceChildren(); add(e, 'i', 'w', n < 5 ? '␣'.repeat(n) : `␣×${n}`); return e }
    fill(e, t.slice(n))
    if (n) e.prepend(add(null, 'i', 'w', n < 3 ? '␣'.repeat(n) : `␣×${n}`))
    return e
  }
  const build = () => {
    cells = []
    grid.replaceChildren()
    const kept = at
    const top = add(add(grid, 'thead'), 'tr'); top.setAttribute('role', 'row')
    const corner = add(top, 'th', 'c', 'layer'); corner.scope = 'col'
    d.words.forEach((w, t) => { const h = token(add(top, 'th', 'm'), w); h.scope = 'col'; h.title = `position ${t}: ${visible(w)}` })
    const rows = add(grid, 'tbody')
    for (let i = 0; i < d.R; i++) {
      const tr = add(rows, 'tr'); tr.setAttribute('role', 'row')
      add(tr, 'th', 'c', d.layers[i]).scope = 'row'
      cells.push(d.words.map((_, t) => {
        const td = add(tr, 'td')
        td.setAttribute('role', 'gridcell'); td.tabIndex = -1; td.dataset.at = i + ',' + t
        token(add(td, 'b'), best(i, t)); add(td, 'small')
        if (t + 1 < d.T && d.names[d.top[(i * d.T + t) * d.n]] === d.words[t + 1]) td.classList.add('right')
        td.setAttribute('aria-label', `${where(i)}, after ${visible(d.words[t])}: ${visible(best(i, t))}, probability ${show(p1(i, t), 3)}`)
        return td
      }))
    }
    const last = add(add(rows, 'tr', 'next'), 'th', 'c', 'next'); last.scope = 'row'; last.parentElement.setAttribute('role', 'row')
    d.words.forEach((_, t) => { const e = add(last.parentElement, 'td', 'm'); e.setAttribute('role', 'gridcell'); if (t + 1 < d.T) token(e, d.words[t + 1]); else add(e, 'i', 'w', '?') })
    at = cells[kept[0]]?.[kept[1]] ? kept : [Math.max(0, d.R - 1), 0]
    if (cells[at[0]]?.[at[1]]) cells[at[0]][at[1]].tabIndex = 0
  }
  const paint = () => {
    const s = scale(), c = get('colour')
    cells.forEach((row, i) => row.forEach((td, t) => { const v = Math.max(0, Math.min(1, s.of(i * d.T + t))); td.style.setProperty('--v', Math.round(75 * v) + '%'); td.lastChild.textContent = small(i, t) }))
    lo.textContent = s.lo; hi.textContent = s.hi
    legend.setAttribute('aria-label', `colour scale from ${s.lo} to ${s.hi}`); legend.style.visibility = d.T ? '' : 'hidden'
    paints(c)
  }
  const chosen = () => { const c = get('cell'); const i = c.length === 2 ? d.layers.findIndex((_, k) => number(k) === c[0]) : -1; return i >= 0 && c[1] < d.T ? [i, c[1]] : null }
  const tell = () => {
    const pick = chosen(), c = over ?? pick ?? (d.T ? [d.R - 1, d.T - 1] : null)
    cells.forEach((row, i) => row.forEach((td, t) => { const on = !!pick && pick[0] === i && pick[1] === t; td.classList.toggle('sel', on); td.setAttribute('aria-selected', on) }))
    list.replaceChildren()
    if (!c) { head.textContent = 'Nothing is read yet'; facts.textContent = ''; hint.textContent = ''; return }
    const [i, t] = c, j = i * d.T + t
    head.replaceChildren(); token(add(head, 'b', 'm'), d.words[t]); head.append(` then, ${where(i)}`)
    facts.textContent = `position ${t} · KL ${show(d.kl[j], 3)} · entropy ${show(d.entropy[j], 3)} nats` + (d.rank[j] ? ` · what follows ranks ${show(d.rank[j])}` : '')
    for (let k = 0; k < d.n; k++) {
      const p = d.prob[j * d.n + k], row = add(list, 'div', 'r'), name = d.names[d.top[j * d.n + k]]
      token(add(row, 'span', 'm'), name).title = visible(name)
      const b = add(row, 'i'); add(b, 'i').style.width = Math.max(p * 100, .5) + '%'
      add(row, 'em', '', p < 1e-4 ? '<.0001' : p.toFixed(4).replace(/^0/, ''))
      if (t + 1 < d.T && name === d.words[t + 1]) row.classList.add('true')
    }
    hint.textContent = pick ? 'The outlined cell is picked. Esc or a second click leaves it.' : 'Point at a cell to see more; click to keep it.'
  }
  const all = () => {
    load(); over = null
    title.textContent = `${get('kind') ? get('kind')[0].toUpperCase() + get('kind').slice(1) + ' lens' : 'Lens'}${get('model') ? ' · ' + get('model') : ''}`
    wrong.textContent = get('error'); wrong.hidden = !wrong.textContent
    said.textContent = get('said'); note.textContent = get('note'); note.hidden = !note.textContent
    lenses(get('kind'))
    left.hidden = !d.T
    build(); paint(); tell()
  }
  const place = e => { const td = e.target.closest('td[data-at]'); return td ? td.dataset.at.split(',').map(Number) : null }
  const pick = (i, t) => { const now = chosen(); set('cell', now && now[0] === i && now[1] === t ? [] : [number(i), t]) }
  const reach = (i, t) => {
    const td = cells[i]?.[t]
    if (!td) return
    if (cells[at[0]]?.[at[1]]) cells[at[0]][at[1]].tabIndex = -1
    at = [i, t]; td.tabIndex = 0; td.focus({ preventScroll: true }); td.scrollIntoView({ block: 'nearest', inline: 'nearest' })
  }
  grid.addEventListener('mouseover', e => { const c = place(e); if (c) { over = c; tell() } })
  grid.addEventListener('mouseleave', () => { over = null; tell() })
  grid.addEventListener('focusin', e => { const c = place(e); if (c) { over = c; tell() } })
  grid.addEventListener('focusout', () => { over = null; tell() })
  grid.addEventListener('click', e => { const c = place(e); if (c) { reach(...c); pick(...c) } })
  const moves = { ArrowRight: (i, t) => [i, t + 1], ArrowLeft: (i, t) => [i, t - 1], ArrowDown: (i, t) => [i + 1, t], ArrowUp: (i, t) => [i - 1, t], Home: i => [i, 0], End: i => [i, d.T - 1] }
  grid.addEventListener('keydown', e => {
    const c = place(e)
    if (!c || e.altKey || e.ctrlKey || e.metaKey) return
    if (moves[e.key]) reach(...moves[e.key](...c))
    else if (e.key === 'Enter' || e.key === ' ') pick(...c)
    else if (e.key === 'Escape') set('cell', [])
    else return
    e.preventDefault(); e.stopPropagation()
  })
  const typed = typing(area, model)
  all()
  const on = { 'change:version': all, 'change:cell': tell, 'change:colour': paint, 'change:text': typed.told }
  const off = listen(model, on)
  return () => { typed.stop(); off() }
}
// The same on a page without a kernel: the numbers lie in the page
function still(section) {
  const data = JSON.parse(section.querySelector('script[type="application/json"]').textContent)
  for (const k of ['top', 'prob', 'kl', 'entropy', 'rank']) data[k] = from_base64(data[k])
  section.querySelector('.snb-lens').remove()
  render({ model: page_model(data), el: section })
}
export default { render }

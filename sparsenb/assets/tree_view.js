// Python's tree and a probe's, on both sides of the tokens: a node is a bracket over its rows, the root outermost.
const fused = '<sep>', row = 19
const called = label => label === '' ? 'the rest of a node' : visible(label).split(fused).join(' › ')

function render({ model, el }) {
  const get = k => model.get(k), still = !!get('still')
  const root = add(el, 'div', 'snb snb-panel snb-tv')
  const bar = add(root, 'div', 'snb-b'), title = add(bar, 'span', 'snb-h', 'Syntax tree'), pick = add(bar, 'select')
  pick.setAttribute('aria-label', 'snippet')
  add(bar, 'span', 'sp')
  const said = add(bar, 'span', 'snb-c'); said.setAttribute('aria-live', 'polite')
  const form = choice(bar, 'form of the trees', ['binary', 'Python’s nodes'], n => put(model, { binary: n === 'binary', node: [] }))
  const area = add(root, 'textarea')
  area.spellcheck = false; area.hidden = still; area.setAttribute('aria-label', 'a Python text of yours'); area.placeholder = 'Type or paste Python; its trees follow. Empty, the snippet above is shown.'
  const wrong = add(root, 'div', 'snb-wrong'); wrong.setAttribute('role', 'alert')
  const rows = add(root, 'div', 'snb-tv-k')
  rows.setAttribute('role', 'group'); rows.setAttribute('aria-label', 'layers, with tree F1 of this text')
  const body = add(root, 'div', 'snb-split'), left = add(body, 'div'), side = add(body, 'div', 'snb-side')
  const heads = add(left, 'div', 'snb-tv-h'), box = add(left, 'div', 'snb-tv-o'), picture = draw(box, 'svg', { role: 'img' }), legend = add(left, 'div', 'snb-tv-l')
  const mine = add(heads, 'span', '', 'Python'), theirs = add(heads, 'span')
  box.tabIndex = 0; box.setAttribute('role', 'group')
  const code = add(side, 'pre', 'snb-tv-x'), facts = add(side, 'div', 'snb-tv-f')
  facts.setAttribute('aria-live', 'polite')
  const hint = add(side, 'div', 'snb-c', 'Point at a bracket to see its text; a click or the arrows keep it, Esc leaves it. [ and ] change the layer.')

  // ---- trees, from three small numbers a node ----
  let d = null, sides = null, over = null, words = []
  const load = () => {
    const own = get('text') !== '', r = own ? get('typed') : get('given')[get('snippet')]
    if (!r?.text) { d = null; return }
    const flat = new Uint16Array(bytes(r.nodes)), leaves = new Uint32Array(bytes(r.leaves))
    let at = 0
    const trees = r.sizes.map(n => {
      const open = [], out = []
      for (let k = 0; k < n; k++, at += 3) {
        const x = { k, label: r.labels[flat[at]], a: flat[at + 1], b: flat[at + 2], kids: [] }
        while (open.length && (open[open.length - 1].b < x.b || open[open.length - 1].b < x.a)) open.pop()
        x.up = open[open.length - 1]
        x.rest = x.label === '' && !!x.up && x.b === x.up.b // what `unbinary` takes out again
        x.up?.kids.push(x); open.push(x); out.push(x)
      }
      return out
    })
    d = { ...r, leaves: [...Array(leaves.length / 2).keys()].map(i => [leaves[2 * i], leaves[2 * i + 1]]), trees }
  }
  const compare = () => { // which nodes are drawn, how deep they lie, and whether the other tree has them
    const layer = Math.max(0, get('layers').indexOf(get('layer')))
    sides = [d.trees[0], d.trees[1 + layer]].map(all => ({ all, nodes: all.filter(x => get('binary') || !x.rest) }))
    const span = x => x.a * 65536 + x.b
    sides.forEach((s, i) => {
      const other = new Map(sides[1 - i].nodes.map(x => [span(x), x]))
      s.deep = 0
      for (const x of s.nodes) {
        x.over = x.up; while (x.over && !s.nodes.includes(x.over)) x.over = x.over.up
        x.depth = x.over ? x.over.depth + 1 : 0; s.deep = Math.max(s.deep, x.depth)
        x.twin = other.get(span(x)); x.is = !x.twin ? 2 : x.twin.label === x.label ? 0 : 1
      }
    })
  }

  // ---- the picture ----
  const mark = (g, is, x, y) => { // the shapes: none, a hollow square, a diamond
    if (is === 1) draw(g, 'rect', { x: x - 3, y: y - 3, width: 6, height: 6, class: 's1 hole' })
    if (is === 2) draw(g, 'path', { d: `M${x},${y - 4.2}l4.2,4.2l-4.2,4.2l-4.2,-4.2z`, class: 'f0' })
  }
  const line = (g, is, path) => draw(g, 'path', { d: path, fill: 'none', class: ['axis', 's1', 's0'][is], 'stroke-width': is === 2 ? 1.6 : 1.2, ...(is === 2 ? { 'stroke-dasharray': '3 2.5' } : {}) })
  const paint = () => {
    const width = Math.max(260, box.clientWidth - 2), n = d.leaves.length
    const texts = d.leaves.map(([a, b]) => d.text.slice(a, b)), room = Math.min(16, Math.max(3, ...texts.map(t => visible(t).length))), half = Math.round(room * 3.7 + 6), mid = Math.round(width / 2)
    picture.replaceChildren()
    picture.setAttribute('viewBox', `0 0 ${width} ${n * row + 8}`); picture.style.width = width + 'px'; picture.style.height = n * row + 8 + 'px'
    texts.forEach((t, i) => {
      const y = i * row + 4 + row / 2, s = visible(t), e = draw(picture, 'text', { x: mid, y: y + 4, 'text-anchor': 'middle', class: 'leaf', 'font-size': 12, 'data-leaf': i }, s.length > room ? s.slice(0, room - 1) + '…' : s)
      if (s.length > room) draw(e, 'title', {}, s)
    })
    sides.forEach((s, i) => {
      const wide = (mid - half - 8) / (s.deep + 1), x = depth => i ? width - 4 - depth * wide : 4 + depth * wide, inward = i ? -1 : 1
      const inner = new Array(n).fill(-1)
      for (const v of s.nodes) for (let j = v.a; j <= v.b; j++) inner[j] = Math.max(inner[j], v.depth)
      inner.forEach((deep, j) => { const y = j * row + 4 + row / 2; draw(picture, 'line', { x1: x(Math.max(0, deep)) + 8 * inward, x2: mid - half * inward, y1: y, y2: y, class: 'rule', 'stroke-dasharray': '1 3' }) })
      for (const v of s.nodes) {
        const g = draw(picture, 'g', { 'data-at': `${i},${v.k}`, class: v.label === '' ? 'node rest' : 'node' }), px = x(v.depth), top = v.a * row + 7, low = (v.b + 1) * row + 1
        draw(g, 'rect', { x: i ? mid + half : px - 3, y: top - 2, width: Math.max(4, mid - half - (i ? width - px : px) + 3), height: low - top + 4, class: 'hit' })
        line(g, v.is, `M${px + 6 * inward},${top}H${px}V${low}H${px + 6 * inward}`)
        mark(g, v.is, px, top + 7)
        const fit = Math.floor(((v.b > v.a && v.kids.some(k => k.a === v.a && s.nodes.includes(k))) ? wide - 14 : mid - half - v.depth * wide - 14) / 5.8), name = visible(v.label).split(fused).pop()
        if (fit >= 3 && name) draw(g, 'text', { x: px + 8 * inward, y: top + 10, 'text-anchor': i ? 'end' : 'start', 'font-size': 10, class: 'name' }, name.length > fit ? name.slice(0, fit - 1) + '…' : name)
      }
    })
    light()
  }
  const shown = () => over ?? (get('node').length ? get('node') : null)
  const found = at => at && sides?.[at[0]]?.all[at[1]]
  const light = () => {
    const now = shown(), v = found(now), kept = get('node').join()
    for (const g of picture.querySelectorAll('.node')) { g.classList.toggle('on', !!now && g.dataset.at === now.join()); g.classList.toggle('kept', g.dataset.at === kept) }
    for (const e of picture.querySelectorAll('.leaf')) e.classList.toggle('on', !!v && e.dataset.leaf >= v.a && e.dataset.leaf <= v.b)
    words.forEach((w, i) => w.classList.toggle('on', !!v && i >= 2 * v.a && i <= 2 * v.b))
    facts.replaceChildren()
    if (!v) { const s = d.scores[Math.max(0, get('layers').indexOf(get('layer')))]; add(facts, 'b', '', `F1 ${show(s[0], 2)}`); facts.append(` of named nodes, ${show(s[1], 2)} by their tokens alone.`); return }
    add(facts, 'b', '', called(v.label)); add(facts, 'small', '', now[0] ? ` probe, ${visible(get('layer'))}` : ' Python')
    add(facts, 'div', '', v.is === 0 ? 'Both trees have it.' : v.is === 1 ? `${now[0] ? 'Python' : 'The probe'} calls these tokens ${called(v.twin.label)}.` : `${now[0] ? 'Python' : 'The probe'} has no node over these tokens.`)
    const t = d.text.slice(d.leaves[v.a][0], d.leaves[v.b][1])
    add(facts, 'div', 'snb-c', v.a === v.b ? `token ${v.a}: ${visible(t).slice(0, 60)}` : `tokens ${v.a} to ${v.b}`)
  }
  const write = () => { // the text, its leaves and what stands between them by turns
    let at = 0
    code.replaceChildren(); words = []
    d.leaves.forEach(([a, b], i) => { const gap = add(code, 'span', '', d.text.slice(at, a)); if (i) words.push(gap); const e = add(code, 'span', 'k', d.text.slice(a, b)); e.dataset.leaf = i; words.push(e); at = b })
    code.append(d.text.slice(at))
  }
  const count = () => {
    const n = [0, 1, 2].map(is => sides.map(s => s.nodes.filter(v => v.is === is).length))
    legend.replaceChildren(...[`both trees, ${n[0][0]}`, `same tokens, other name, ${n[1][0]}`, `one tree alone, ${n[2].join(' and ')}`].map((t, is) => {
      const e = add(null, 'span'), s = draw(e, 'svg', { width: 14, height: 14, 'aria-hidden': true })
      line(s, is, 'M9,1H5V13H9'); mark(s, is, 5, 7)
      add(e, 'span', '', t)
      return e
    }))
    box.setAttribute('aria-label', `Python’s tree and the probe’s; ${n[0][0]} nodes in both, ${n[1][0]} of other names, ${n[2][0]} of Python’s and ${n[2][1]} of the probe’s alone. Arrows go from node to node.`)
  }
  const layers = () => {
    rows.replaceChildren(...get('layers').map((name, i) => {
      const f = d.scores[i][0], b = button(null, '', `${visible(name)}: F1 ${show(f, 2)}`, () => put(model, { layer: name }))
      add(b, 'span', '', visible(name)); add(b, 'i').style.setProperty('--v', Math.round(100 * f) + '%'); add(b, 'em', '', f.toFixed(2).replace(/^0/, ''))
      b.setAttribute('aria-pressed', name === get('layer'))
      return b
    }))
    theirs.textContent = `probe, ${visible(get('layer'))}`
  }
  const all = () => {
    load(); over = null
    wrong.textContent = visible(get('error')); wrong.hidden = !get('error'); said.textContent = get('said')
    form(get('binary') ? 'binary' : 'Python’s nodes'); pick.value = get('snippet'); pick.hidden = get('names').length < 2 || !!get('text')
    body.hidden = rows.hidden = !d
    if (!d) return
    compare(); layers(); write(); count(); paint()
  }
  const relight = () => { if (d) light() }

  // ---- pointer and keys ----
  const at = e => e.target.closest?.('.node')?.dataset.at.split(',').map(Number) ?? null
  picture.addEventListener('pointermove', e => { const v = at(e); if (String(v) !== String(over)) { over = v; light() } })
  picture.addEventListener('pointerleave', () => { over = null; relight() })
  picture.addEventListener('click', e => { const v = at(e); put(model, { node: v && v.join() !== get('node').join() ? v : [] }) })
  code.addEventListener('click', e => { // the innermost node over a token
    const i = Number(e.target.closest('.k')?.dataset.leaf ?? -1), on = sides[0].nodes.filter(v => v.a <= i && i <= v.b)
    if (on.length) { put(model, { node: [0, on.reduce((x, y) => y.depth >= x.depth ? y : x).k] }); reach() }
  })
  const reach = () => { const v = found(get('node')); if (v) box.scrollTop = Math.max(0, Math.min(v.a * row - 20, box.scrollTop), v.a * row + 40 - box.clientHeight) }
  const go = key => {
    const [i, k] = get('node'), v = found(get('node')), mine = i === undefined ? [] : sides[i].nodes
    if (!v) return [0, sides[0].nodes[0].k]
    if (key === 'ArrowUp' || key === 'ArrowDown') { const by = key === 'ArrowUp' ? -1 : 1, next = mine[mine.indexOf(v) + by]; return next ? [i, next.k] : [i, k] }
    if ((key === 'ArrowLeft') === !i) return v.over ? [i, v.over.k] : [i, k]
    const child = mine.find(x => x.over === v)
    if (child) return [i, child.k]
    const there = sides[1 - i].nodes.filter(x => x.a <= v.a && v.a <= x.b)
    return there.length ? [1 - i, there.reduce((x, y) => y.depth >= x.depth ? y : x).k] : [i, k]
  }
  root.addEventListener('keydown', e => {
    if (e.target.closest('textarea, select') || e.altKey || e.ctrlKey || e.metaKey || !d) return
    if (e.key.startsWith('Arrow') && e.target === box) { put(model, { node: go(e.key) }); reach() }
    else if (e.key === '[' || e.key === ']') { const l = get('layers'), i = l.indexOf(get('layer')) + (e.key === ']' ? 1 : -1); if (l[i]) put(model, { layer: l[i] }) }
    else if (e.key === 'Escape') put(model, { node: [] })
    else return
    e.preventDefault(); e.stopPropagation()
  })
  pick.addEventListener('keydown', own)
  pick.addEventListener('change', () => put(model, { node: [], snippet: Number(pick.value) }))
  get('names').forEach((n, i) => { const o = add(pick, 'option', '', visible(n)); o.value = i })
  const typed = typing(area, model)
  let wide = 0
  const watch = new ResizeObserver(() => { if (d && box.clientWidth !== wide) { wide = box.clientWidth; paint() } })
  watch.observe(box)
  all()
  const off = listen(model, { 'change:version change:snippet change:layer change:binary': all, 'change:node': relight, 'change:text': typed.told })
  return () => { typed.stop(); watch.disconnect(); off() }
}
// The same on a page without a kernel
function static_trees(section) {
  const state = JSON.parse(section.querySelector('script[type="application/json"]').textContent)
  for (const r of [...state.given, state.typed]) for (const k of ['leaves', 'nodes']) if (r[k] !== undefined) r[k] = from_base64(r[k])
  section.querySelector('noscript')?.remove()
  render({ model: page_model(state), el: section })
}
export default { render }

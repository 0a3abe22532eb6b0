// Attention sinks by layer and head: the map, one head's pattern with and without its sinks, what one token looks at, the same over an image.
const raw = v => v?.buffer ? new Uint8Array(v.buffer, v.byteOffset, v.byteLength) : new Uint8Array()
const half = h => { const e = h >> 10 & 31, f = h & 1023; return (h >> 15 ? -1 : 1) * (e ? (1 + f / 1024) * 2 ** (e - 15) : f * 2 ** -24) }
const halves = (b, at, n) => { const out = new Float32Array(n); for (let i = 0; i < n; i++) out[i] = half(b[at + 2 * i] | b[at + 2 * i + 1] << 8); return out }
// Two or more buttons, of which one is pressed
const either = (parent, label, names, act) => {
  const box = add(parent, 'span', 'snb-two')
  box.setAttribute('role', 'group'); box.setAttribute('aria-label', label)
  const all = Object.entries(names).map(([k, n]) => {
    const b = add(box, 'button', '', n)
    b.type = 'button'; b.dataset.is = k
    b.addEventListener('click', () => act(k))
    return b
  })
  return now => { for (const b of all) b.setAttribute('aria-pressed', b.dataset.is === String(now)) }
}
const share = v => `${show(100 * v, 3)} %`

// What a tile holds: bytes of the sinks' columns as they are, of all others without the sinks
const unfold = (m, view, T, causal, image) => {
  const b = raw(view), kept = halves(b, 0, T).map(v => 1 - v), alpha = halves(b, 2 * T, T)
  const sinks = [...Array(T).keys()].filter(j => b[6 * T + (j >> 3)] >> 7 - (j & 7) & 1), on = new Set(sinks)
  const norms = [4, 5].map((k, i) => Float32Array.from(b.subarray(k * T, (k + 1) * T), v => v / 255 * m.most[i]))
  const left = b.slice(6 * T + (T + 7 >> 3)), start = i => causal ? i * (i + 1) / 2 : i * T, length = i => causal ? i + 1 : T
  const row = (i, without, out = new Float32Array(T)) => {
    const s = start(i), f = (without ? 1 : kept[i]) / 255, e = length(i)
    for (let j = 0; j < e; j++) out[j] = left[s + j] * f
    for (const j of sinks) if (j < e) out[j] = without ? 0 : left[s + j] / 255
    return out
  }
  let mean = null
  const received = without => {
    if (!without) return alpha
    if (mean) return mean
    mean = new Float32Array(T); const seen = new Float32Array(T)
    for (let i = 0; i < T; i++) {
      const v = row(i, true), e = length(i)
      if (v.some(x => x)) for (let j = 0; j < e; j++) { mean[j] += v[j]; seen[j]++ }
    }
    for (let j = 0; j < T; j++) mean[j] /= seen[j] || 1
    return mean
  }
  // over the image, where bytes would be too coarse
  const cells = image.length ? image[1] * image[2] : 0, past = 6 * T + (T + 7 >> 3) + (causal ? T * (T + 1) / 2 : T * T)
  const share = cells ? halves(b, past, T) : null, block = cells ? halves(b, past + 2 * T, T * cells) : null
  const over = (q, without) => {
    const out = new Float32Array(cells), n = new Float32Array(cells)
    for (let i = q < 0 ? 0 : q; i < (q < 0 ? T : q + 1); i++) {
      if (without && share[i] <= 1e-6) continue
      for (let k = 0; k < cells; k++) if (q >= 0 || !causal || i >= image[0] + k) { n[k]++; if (!without || !on.has(image[0] + k)) out[k] += block[i * cells + k] / (without ? share[i] : 1) }
    }
    return out.map((v, k) => v / (n[k] || 1))
  }
  return { over, sinks, on, alpha, norms, kept, row, received, T, causal }
}

function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-panel snb-sinks')
  const get = k => model.get(k), set = (k, v) => { model.set(k, v); model.save_changes() }
  const bar = add(root, 'div', 'snb-b')
  const title = add(bar, 'span', 'snb-h')
  const pick = add(bar, 'select')
  pick.setAttribute('aria-label', 'prompt')
  add(bar, 'span', 'sp')
  const said = add(bar, 'span', 'snb-c'); said.setAttribute('aria-live', 'polite')
  const area = add(root, 'textarea')
  area.rows = 2; area.spellcheck = false; area.setAttribute('aria-label', 'a prompt of yours'); area.placeholder = 'Type or paste a text; its sinks follow. Empty, the map shows what it was given.'
  const wrong = add(root, 'div', 'snb-wrong'); wrong.setAttribute('role', 'alert')
  const app = add(root, 'div', 'snb-sm'), left = add(app, 'div', 'snb-sm-l'), main = add(app, 'div', 'snb-sm-m'), right = add(app, 'div', 'snb-sm-r')
  const section = (parent, text) => { const s = add(parent, 'section'); s.cap = add(s, 'div', 'snb-q', text); return s }

  // left: the map of heads, and the sinks of the chosen one
  const map = section(left, 'Mean attention on one token, by layer and head')
  const colour = either(map, 'coloured by', { best: 'Best sink', first: 'First token' }, k => set('score', k))
  const heads = add(map, 'div', 'snb-heads')
  heads.setAttribute('role', 'grid'); heads.setAttribute('aria-label', 'layers and heads; arrows go from one to the next')
  const scale = (parent, ticks) => {
    const l = add(parent, 'div', 'snb-l')
    l.setAttribute('role', 'img')
    const lo = add(l, 'span', '', ticks ? '' : '0'), box = add(l, 'i'), hi = add(l, 'span', '', '1')
    if (ticks) {
      l.className = 'snb-l snb-ticks'; lo.remove(); hi.remove()
      for (const t of ticks) add(box, 'b', '', String(t)).style.left = 100 * Math.sqrt(t) + '%'
      l.setAttribute('aria-label', `colour scale of attention: ${ticks.join(', ')}`)
    }
    return v => { hi.textContent = show(v, 2); l.setAttribute('aria-label', `colour scale from 0 to ${hi.textContent}`) }
  }
  scale(map)(1)
  const list = section(left, 'Sinks of this head'), table = add(list, 'table', 'snb-t')

  // middle: the head
  const top = add(main, 'div', 'snb-b')
  const step = (by, sign, label) => { const b = add(top, 'button', '', sign); b.type = 'button'; b.title = label; b.setAttribute('aria-label', label); b.addEventListener('click', () => go(by)) }
  step(-1, '‹', 'previous head'); step(1, '›', 'next head')
  const name = add(top, 'span', 'snb-n')
  add(top, 'span', 'sp')
  const without = either(top, 'what is shown', { false: 'All attention', true: 'Without sinks' }, k => set('exclude', k === 'true'))
  const stats = add(main, 'div', 'snb-s')
  const pair = add(main, 'div', 'snb-pair')
  const plot = section(pair, ''), box = add(plot, 'div', 'snb-plane'), canvas = add(box, 'canvas')
  canvas.tabIndex = 0; canvas.setAttribute('role', 'img')
  const read = add(plot, 'div', 'snb-c snb-read'); read.setAttribute('aria-live', 'polite')
  scale(plot, [0, .1, .5, 1])
  const text = section(pair, ''), bound = scale(text)
  const words = strip(text, 'tokens; choose one to see what it looks at', { choose: (_, j) => set('token', get('token') === j ? -1 : j), leave: () => set('token', -1), tip: (_, j) => about_token(j) })
  const none = add(text, 'div', 'snb-c')
  const seen = section(main, ''), frames = add(seen, 'div', 'snb-frames')
  const views = ['All attention', 'Without sinks'].map((t, k) => {
    const f = add(frames, 'div'), cap = add(f, 'div', 'snb-c', t), c = add(f, 'canvas')
    c.tabIndex = 0; c.setAttribute('role', 'img')
    return { c, cap, bound: scale(f), without: k === 1 }
  })

  // right: positions, φ, channels
  const profile = section(right, 'By position, in this head'), waves = draw(profile, 'svg', { viewBox: '0 0 240 186', role: 'img' })
  const points = section(right, ''), plane = draw(points, 'svg', { viewBox: '0 0 240 150', role: 'img' }), point = add(points, 'div', 'snb-c snb-read')
  const channels = section(right, 'Largest coordinates of the residual stream, and the median'), curve = draw(channels, 'svg', { viewBox: '0 0 240 96', role: 'img' }), tops = add(channels, 'table', 'snb-t')
  const foot = add(root, 'div', 'snb-c')

  const cache = new Map()
  let asked = '', cursor = [-1, -1], built = -1, size = 0, edge = 14, shown = null
  const facts = () => get('facts'), index = () => facts().layers.indexOf(get('layer')), T = () => get('words').length
  const key = (l = get('layer'), h = get('head')) => `${get('version')},${l},${h}`
  const tile = () => cache.get(key())
  const word = j => about(get('words')[j] ?? '')
  const css = n => getComputedStyle(root).getPropertyValue(n).trim()
  const about_token = j => {
    const t = shown, q = get('token')
    if (!t || j >= t.T) return word(j)
    const v = q < 0 ? t.received(get('exclude'))[j] : t.row(q, get('exclude'))[j]
    return `${word(j)} · position ${j} · ${q < 0 ? 'receives' : 'given'} ${show(v, 3)}` + (t.on.has(j) ? ' · a sink' : '')
  }

  // ---- the map of heads
  const build = () => {
    const f = facts(), H = f.heads
    heads.style.gridTemplateColumns = `22px repeat(${H}, minmax(0, 1fr))`
    heads.classList.toggle('tight', H > 8)
    const rows = [add(null, 'div', 'snb-hr')]
    add(rows[0], 'span', 'snb-hl', ''); rows[0].setAttribute('aria-hidden', 'true')
    for (let h = 0; h < H; h++) add(rows[0], 'span', 'snb-hl', H <= 16 || h % 4 === 0 ? String(h) : '')
    f.layers.forEach(l => {
      const r = add(null, 'div', 'snb-hr'); r.setAttribute('role', 'row')
      add(r, 'span', 'snb-hl', String(l)).setAttribute('role', 'rowheader')
      for (let h = 0; h < H; h++) { const c = add(r, 'span', 'snb-hc'); c.setAttribute('role', 'gridcell'); c.dataset.l = l; c.dataset.h = h; c.tabIndex = -1 }
      rows.push(r)
    })
    heads.replaceChildren(...rows)
    pick.hidden = f.prompts < 2 || !!get('text')
    const may = f.held ?? [...f.names.keys()]
    pick.replaceChildren(...may.map(i => { const o = add(null, 'option', '', `${i + 1} · ${visible(f.names[i] ?? '')}`); o.value = i; return o }))
    pick.value = get('prompt')
    title.textContent = `Attention sinks · ${visible(f.model)}`
    foot.textContent = [visible(f.about), f.less, 'Keys: arrows go over heads, tokens and the pattern; e takes sinks out and back; Esc frees the token.'].filter(Boolean).map(t => t.replace(/\.$/, '')).join('. ') + '.'
    words.build([get('words')])
    const [from, down, across] = f.image
    words.grid.querySelectorAll('.k').forEach((s, j) => s.classList.toggle('patch', j >= from && j < from + down * across))
    area.hidden = !f.live
  }
  const light = () => {
    const f = facts(), s = floats(get('scores')), of = get('score') === 'first' ? 0 : f.layers.length * f.heads, l = get('layer'), h = get('head'), small = f.heads > 8
    const what = of ? 'its best sink' : 'the first token'
    heads.querySelectorAll('.snb-hc').forEach((c, k) => {
      const v = s[of + k], on = Number(c.dataset.l) === l && Number(c.dataset.h) === h, said = `layer ${c.dataset.l}, head ${c.dataset.h}: ${show(v, 3)} on ${what}`
      c.style.setProperty('--v', Math.round(4 + 76 * Math.min(1, v || 0)) + '%')
      c.textContent = small || !Number.isFinite(v) ? '' : v.toFixed(2).replace(/^0/, '')
      c.title = said; c.setAttribute('aria-label', said)
      c.tabIndex = on ? 0 : -1
      if (on) c.setAttribute('aria-selected', 'true'); else c.removeAttribute('aria-selected')
    })
    colour(get('score'))
  }
  const choose = (l, h, focus) => {
    if (focus) heads.querySelector(`[data-l="${l}"][data-h="${h}"]`)?.focus() // before anything is drawn, which would have to be laid out for it
    if (l !== get('layer') || h !== get('head')) { model.set('layer', l); model.set('head', h); model.save_changes() }
  }
  const go = by => {
    const f = facts(), at = index() * f.heads + get('head') + by
    if (at >= 0 && at < f.heads * f.layers.length) choose(f.layers[Math.floor(at / f.heads)], at % f.heads)
  }
  heads.addEventListener('click', e => { const c = e.target.closest('.snb-hc'); if (c) choose(Number(c.dataset.l), Number(c.dataset.h), true) })
  heads.addEventListener('keydown', e => {
    const d = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key], f = facts()
    if (!d || e.altKey || e.ctrlKey || e.metaKey) return
    const l = index() + d[0], h = get('head') + d[1]
    if (l >= 0 && l < f.layers.length && h >= 0 && h < f.heads) choose(f.layers[l], h, true)
    e.preventDefault(); e.stopPropagation()
  })

  // ---- asking for a head; what was shown stands until it comes
  const ask = () => {
    const k = key()
    if (cache.has(k) || asked === k) return
    asked = k; root.setAttribute('aria-busy', 'true')
    model.send({ want: [get('version'), get('layer'), get('head')] })
  }
  const came = (m, buffers) => {
    const [v, l, h] = m.tile ?? m.none ?? []
    if (v !== get('version')) return
    while (cache.size >= 200) cache.delete(cache.keys().next().value)
    cache.set(`${v},${l},${h}`, m.none ? 'none' : unfold(m, buffers[0], T(), facts().causal, facts().image))
    if (asked === `${v},${l},${h}`) asked = ''
    if (key() === `${v},${l},${h}`) head()
  }

  // ---- the pattern
  const field = (t, N) => { // largest value of each of N × N blocks
    const out = new Float32Array(N * N), row = new Float32Array(t.T), ex = get('exclude'), at = Uint32Array.from({ length: t.T }, (_, j) => Math.floor(j * N / t.T))
    for (let i = 0; i < t.T; i++) {
      t.row(i, ex, row)
      const y = at[i] * N, e = t.causal ? i + 1 : t.T
      for (let j = 0; j < e; j++) { const p = y + at[j]; if (row[j] > out[p]) out[p] = row[j] }
    }
    return out
  }
  let layer = null // the drawn pattern, kept while marks move over it
  const paint = anew => {
    size = Math.max(120, Math.min(box.clientWidth - edge - 2, 460))
    const d = devicePixelRatio || 1, whole = size + edge + 2, g = canvas.getContext('2d')
    canvas.width = canvas.height = Math.round(whole * d); canvas.style.width = canvas.style.height = whole + 'px'
    g.setTransform(d, 0, 0, d, 0, 0); g.clearRect(0, 0, whole, whole)
    const t = shown, n = t ? t.T : T(), cell = size / Math.max(1, n)
    g.fillStyle = css('--bg'); g.fillRect(edge, edge, size, size)
    if (t?.causal ?? facts().causal) { g.fillStyle = css('--bg2'); g.beginPath(); g.moveTo(edge, edge); g.lineTo(edge + size, edge); g.lineTo(edge + size, edge + size); g.fill() }
    if (t) {
      if (anew || !layer || layer.width > size * d + 1) {
        const N = Math.min(n, Math.round(size * d)), f = field(t, N), hex = parseInt(css('--heat').slice(1), 16)
        layer = document.createElement('canvas'); layer.width = layer.height = N
        const im = new ImageData(N, N), px = new Uint32Array(im.data.buffer), rgb = (hex & 255) << 16 | hex & 65280 | hex >> 16
        for (let i = 0; i < px.length; i++) px[i] = (Math.sqrt(f[i]) * 240 << 24 | rgb) >>> 0
        layer.getContext('2d').putImageData(im, 0, 0)
      }
      g.imageSmoothingEnabled = false; g.drawImage(layer, edge, edge, size, size)
      const ex = get('exclude'), w = Math.max(cell, 3)
      g.fillStyle = css('--mark')
      for (const j of t.sinks) {
        const x = edge + (j + .5) * cell
        g.globalAlpha = 1; g.fillRect(Math.max(edge, x - w / 2), 3, w, 8)
        if (ex) { g.globalAlpha = .16; g.fillRect(Math.max(edge, x - Math.max(cell, 2) / 2), edge, Math.max(cell, 2), size) }
      }
      g.globalAlpha = 1
    }
    g.strokeStyle = css('--line'); g.lineWidth = 1; g.strokeRect(edge - .5, edge - .5, size + 1, size + 1)
    const q = get('token')
    if (q >= 0 && q < n) {
      const y = edge + q * cell
      g.fillStyle = g.strokeStyle = css('--heat'); g.fillRect(3, y + cell / 2 - Math.max(cell, 3) / 2, 8, Math.max(cell, 3))
      if (cell > 3) g.strokeRect(edge, y, size, cell); else { g.globalAlpha = .55; g.fillRect(edge, y + cell / 2 - .5, size, 1); g.globalAlpha = 1 }
    }
    if (cursor[1] >= 0 && cursor[0] >= 0 && cell > 2) { g.strokeStyle = css('--ink'); g.strokeRect(edge + cursor[1] * cell, edge + cursor[0] * cell, cell, cell) }
  }
  const tell = (i, j) => {
    const t = shown
    if (!t || i < 0 || j < 0 || i >= t.T || j >= t.T) { read.textContent = 'Click a row to follow one token.'; return }
    const v = t.row(i, get('exclude'))[j]
    read.textContent = t.causal && j > i ? `“${word(i)}” (${i}) does not see “${word(j)}” (${j})` : `“${word(i)}” (${i}) to “${word(j)}” (${j}): ` + (get('exclude') && t.on.has(j) ? 'taken out' : show(v, 3))
  }
  const place = e => { const b = canvas.getBoundingClientRect(), f = v => Math.floor((v - edge) / size * T()); return [f(e.clientY - b.y), f(e.clientX - b.x)] }
  canvas.addEventListener('pointermove', e => { cursor = place(e); tell(...cursor) })
  canvas.addEventListener('pointerleave', () => { cursor = [-1, -1]; tell(-1, -1); paint() })
  canvas.addEventListener('click', e => { const [i] = place(e); if (i >= 0 && i < T()) set('token', i === get('token') ? -1 : i) })
  const walk = e => {
    if (e.altKey || e.ctrlKey || e.metaKey) return true
    const q = get('token'), n = T(), clip = v => Math.max(0, Math.min(n - 1, v))
    if (e.key === 'ArrowDown' || e.key === 'ArrowUp') { const to = q < 0 ? 0 : clip(q + (e.key === 'ArrowDown' ? 1 : -1)); cursor = [to, Math.max(cursor[1], 0)]; set('token', to) }
    else if (e.key === 'ArrowLeft' || e.key === 'ArrowRight') { cursor = [Math.max(q, 0), clip(cursor[1] + (e.key === 'ArrowRight' ? 1 : -1))]; if (q < 0) set('token', 0) }
    else if (e.key === 'Escape') { cursor = [-1, -1]; set('token', -1) }
    else return true
    tell(...cursor); paint()
    e.preventDefault(); e.stopPropagation()
  }
  canvas.addEventListener('keydown', walk)

  // ---- one token's attention: in the text, over the image
  const values = () => { const q = get('token'); return q < 0 ? shown.received(get('exclude')) : shown.row(q, get('exclude')) }
  const follow = () => {
    const t = shown, q = get('token')
    words.mark(q >= 0 ? [[0, q]] : [])
    text.cap.textContent = q < 0 ? 'Mean attention received, over the tokens that see each' : `What “${word(q)}” (position ${q}) looks at`
    if (!t) { words.paint(new Float32Array(T()), 0); return }
    const v = values(), most = Math.max(...v)
    words.paint(v, most); bound(most)
    words.grid.querySelectorAll('.k').forEach((s, j) => s.classList.toggle('sink', t.on.has(j)))
    none.textContent = get('exclude') && !most ? 'Every token it sees is a sink: nothing is left.' : q >= 0 && t.sinks.length ? `${share(1 - t.kept[q])} of its attention goes to sinks.` : t.sinks.length ? 'Underlined: sinks of this head.' : ''
    canvas.setAttribute('aria-label', `attention of layer ${get('layer')}, head ${get('head')}: ${t.T} queries down, ${t.T} keys across, ${t.sinks.length} sinks; arrows go over it`)
    over()
  }
  const over = () => {
    const [first, rows, cols] = facts().image, t = shown
    seen.hidden = !cols
    if (!cols || !t) return
    const q = get('token'), [ph, pw] = get('size'), pic = raw(get('picture')), ratio = ph ? ph / pw : rows / cols, w = Math.max(90, Math.min((frames.clientWidth - 24) / 2, 300, 300 / ratio)), d = devicePixelRatio || 1
    seen.cap.textContent = (q < 0 ? 'Mean attention received by each patch' : `What “${word(q)}” (position ${q}) looks at in the image`) + '; a frame is a sink. Each to its own scale'
    for (const f of views) {
      const v = t.over(q, f.without), most = Math.max(...v), g = f.c.getContext('2d'), h = w * ratio
      f.c.width = Math.round(w * d); f.c.height = Math.round(h * d); f.c.style.width = w + 'px'; f.c.style.height = h + 'px'
      g.setTransform(d, 0, 0, d, 0, 0)
      g.fillStyle = css('--bg2'); g.fillRect(0, 0, w, h)
      if (ph) { // the picture without its colours, so that those of the heat are the only ones
        const c = document.createElement('canvas'), im = new ImageData(pw, ph)
        for (let i = 0; i < pw * ph; i++) { const l = .3 * pic[3 * i] + .59 * pic[3 * i + 1] + .11 * pic[3 * i + 2]; im.data.set([l, l, l, 255], 4 * i) }
        c.width = pw; c.height = ph; c.getContext('2d').putImageData(im, 0, 0)
        g.globalAlpha = .6; g.imageSmoothingEnabled = pw > w; g.drawImage(c, 0, 0, w, h)
      }
      const cw = w / cols, ch = h / rows
      g.fillStyle = css('--heat')
      v.forEach((x, k) => { g.globalAlpha = most ? .85 * x / most : 0; g.fillRect(k % cols * cw, Math.floor(k / cols) * ch, cw, ch) })
      g.globalAlpha = 1; g.lineWidth = 1.5
      for (let k = 0; k < rows * cols; k++) for (const [on, c] of [[t.on.has(first + k), '--mark'], [first + k === q, '--heat']]) if (on) { g.strokeStyle = css(c); g.strokeRect(k % cols * cw + 1, Math.floor(k / cols) * ch + 1, cw - 2, ch - 2) }
      const sum = v.reduce((a, b) => a + b, 0)
      f.cap.textContent = `${f.without ? 'Without sinks' : 'All attention'}: ${share(sum)} on the image` + (most ? '' : '; nothing is left')
      f.bound(most)
      f.c.setAttribute('aria-label', `${f.cap.textContent}; largest ${show(most, 3)}; a click follows a patch`)
    }
  }
  for (const f of views) {
    const patch = e => { const [first, rows, cols] = facts().image, b = f.c.getBoundingClientRect(); return first + Math.min(rows - 1, Math.floor((e.clientY - b.y) / b.height * rows)) * cols + Math.min(cols - 1, Math.floor((e.clientX - b.x) / b.width * cols)) }
    f.c.addEventListener('click', e => { const p = patch(e); set('token', get('token') === p ? -1 : p) })
    f.c.addEventListener('pointermove', e => { f.c.title = about_token(patch(e)) })
    f.c.addEventListener('keydown', e => {
      const [first, rows, cols] = facts().image, d = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -cols, ArrowDown: cols }[e.key]
      if (e.key === 'Escape') set('token', -1)
      else if (d) { const q = get('token'), to = q < first || q >= first + rows * cols ? first : q + d; if (to >= first && to < first + rows * cols) set('token', to) }
      else return
      e.preventDefault(); e.stopPropagation()
    })
  }

  // ---- beside it
  const note = (svg, x, y, s, more = {}) => draw(svg, 'text', { x, y, 'font-size': 9, ...more }, s)
  const path = (xs, ys) => xs.map((x, i) => `${i ? 'L' : 'M'}${x.toFixed(1)},${ys[i].toFixed(1)}`).join('')
  const sides = () => {
    const t = shown, q = get('token'), n = t.T, x = j => 4 + j / Math.max(1, n - 1) * 230
    waves.replaceChildren()
    const rows = [[t.received(get('exclude')), get('exclude') ? 'attention received, without sinks' : 'attention received'], [t.norms[0], 'norm of its key'], [t.norms[1], 'norm of its value']]
    rows.forEach(([v, label], k) => {
      const most = Math.max(...v) || 1, b = 56 + 58 * k, y = a => b - a / most * 34
      draw(waves, 'line', { x1: 4, x2: 234, y1: b + .5, y2: b + .5, class: 'rule', stroke: '#ccc' })
      note(waves, 4, b - 43, label); note(waves, 234, b - 43, show(q >= 0 ? v[q] : most, 3) + (q >= 0 ? ' here' : ' at most'), { 'text-anchor': 'end' })
      draw(waves, 'path', { d: path([...v.keys()].map(x), [...v].map(y)), fill: 'none', class: 's3', 'stroke-width': 1.2 })
      for (const j of t.sinks) draw(draw(waves, 'circle', { cx: x(j), cy: y(v[j]), r: 2.6, class: 'f2' }), 'title', {}, `${word(j)} (${j}): ${show(v[j], 3)}`)
      if (q >= 0) draw(waves, 'circle', { cx: x(q), cy: y(v[q]), r: 3, class: 'f0' })
    })
    note(waves, 4, 184, '0'); note(waves, 234, 184, String(n - 1), { 'text-anchor': 'end' }); note(waves, 119, 184, 'position', { 'text-anchor': 'middle' })
    waves.setAttribute('aria-label', `attention received, norms of keys and values by position; largest ${rows.map(r => show(Math.max(...r[0]), 3)).join(', ')}`)
    scatter(t, q); residual()
  }
  let dots = []
  const scatter = (t, q) => {
    const f = facts(), b = raw(get('phi')), phi = halves(b, 2 * index() * t.T, t.T), px = Math.max(...phi, f.passed ? f.tau : 0) * 1.06 || 1, py = Math.max(...t.alpha) * 1.06 || 1
    const x = v => 26 + v / px * 206, y = v => 124 - v / py * 108
    points.cap.textContent = `Sink value φ (${f.dims.length > 1 ? 'channels' : 'channel'} ${f.dims.slice(0, 3).join(', ')}${f.dims.length > 3 ? ' …' : ''}) and attention received`
    plane.replaceChildren()
    draw(plane, 'line', { x1: 26, x2: 234, y1: 124.5, y2: 124.5, class: 'rule', stroke: '#ccc' }); draw(plane, 'line', { x1: 25.5, x2: 25.5, y1: 12, y2: 124, class: 'rule', stroke: '#ccc' })
    note(plane, 22, y(py / 1.06) + 3, show(py / 1.06, 2), { 'text-anchor': 'end' }); note(plane, 22, 127, '0', { 'text-anchor': 'end' })
    note(plane, x(px / 1.06), 136, show(px / 1.06, 3), { 'text-anchor': 'middle' }); note(plane, 26, 136, '0'); note(plane, 130, 146, 'φ at the input of this layer', { 'text-anchor': 'middle' })
    if (f.passed) { draw(plane, 'line', { x1: x(f.tau), x2: x(f.tau), y1: 12, y2: 124, class: 's3', 'stroke-dasharray': '3 3' }); note(plane, x(f.tau) + 3, 18, `τ ${show(f.tau, 3)}`) }
    dots = [...phi].map((v, j) => [x(v), y(t.alpha[j])])
    draw(plane, 'path', { d: dots.filter((_, j) => !t.on.has(j)).map(p => `M${p[0].toFixed(1)},${p[1].toFixed(1)}h0`).join(''), class: 's3', 'stroke-width': 4, 'stroke-linecap': 'round', 'stroke-opacity': .45, fill: 'none' })
    for (const j of t.sinks) draw(plane, 'circle', { cx: dots[j][0], cy: dots[j][1], r: 3.2, class: 'f2' })
    if (q >= 0) draw(plane, 'circle', { cx: dots[q][0], cy: dots[q][1], r: 4, fill: 'none', class: 's0', 'stroke-width': 1.6 })
    plane.setAttribute('aria-label', `sink value against attention received, ${t.T} tokens, ${t.sinks.length} of them sinks`)
    point.textContent = f.passed ? '' : `No channel passes τ = ${show(f.tau, 3)}.`
    plane.near = j => `${word(j)} (${j}): φ ${show(phi[j], 3)}, receives ${show(t.alpha[j], 3)}`
  }
  const nearest = e => {
    const b = plane.getBoundingClientRect(), p = [(e.clientX - b.x) / b.width * 240, (e.clientY - b.y) / b.height * 150]
    let best = 100, at = -1
    dots.forEach(([x, y], j) => { const d = (x - p[0]) ** 2 + (y - p[1]) ** 2; if (d < best) { best = d; at = j } })
    return at
  }
  plane.addEventListener('pointermove', e => { const j = nearest(e); point.textContent = j < 0 ? '' : plane.near(j); plane.style.cursor = j < 0 ? '' : 'pointer' })
  plane.addEventListener('click', e => { const j = nearest(e); if (j >= 0) set('token', j) })
  const residual = () => {
    const m = get('massive'), k = index(), all = m.flatMap(r => [r[2][0][0], r[1]]).map(Math.abs).filter(v => v > 0), lo = Math.log10(Math.min(...all)), hi = Math.log10(Math.max(...all))
    const x = i => 34 + i / Math.max(1, m.length - 1) * 196, y = v => 78 - (Math.log10(Math.max(Math.abs(v), 10 ** lo)) - lo) / (hi - lo || 1) * 64
    curve.replaceChildren()
    draw(curve, 'rect', { x: x(k) - 5, y: 8, width: 10, height: 74, class: 'f0', opacity: .12 })
    for (const [v, cls, w] of [[m.map(r => r[2][0][0]), 's0', 1.6], [m.map(r => (r[2][1] ?? r[2][0])[0]), 's0', .7], [m.map(r => (r[2][2] ?? r[2][0])[0]), 's0', .7], [m.map(r => r[1]), 's3', 1.4]]) draw(curve, 'path', { d: path([...v.keys()].map(x), v.map(y)), fill: 'none', class: cls, 'stroke-width': w })
    note(curve, 30, y(10 ** hi) + 3, show(10 ** hi, 2), { 'text-anchor': 'end' }); note(curve, 30, y(10 ** lo) + 3, show(10 ** lo, 2), { 'text-anchor': 'end' })
    note(curve, 34, 94, m[0][0].replace('.', ' ')); note(curve, 230, 94, m[m.length - 1][0].replace('.', ' '), { 'text-anchor': 'end' })
    curve.setAttribute('aria-label', `largest coordinates and median of ${m.length} hidden states, logarithmic, ${show(10 ** lo, 2)} to ${show(10 ** hi, 2)}`)
    const [name, median, top] = m[k] ?? m[0]
    const line = (cells, tag = 'td') => { const r = add(null, 'tr'); cells.forEach(([c, cls]) => add(r, tag, cls, c)); return r }
    tops.setAttribute('aria-label', `largest coordinates at ${name}`)
    tops.replaceChildren(line([['value', 'r'], ['/ median', 'r'], ['channel', 'r'], ['token', '']], 'th'), ...top.map(([v, j, c]) => line([[show(v, 3), 'r'], [show(Math.abs(v) / median, 3), 'r'], [String(c), 'r'], [word(j), 'm']])))
  }
  const sinks = () => {
    const t = shown, phi = halves(raw(get('phi')), 2 * index() * t.T, t.T), order = [...t.sinks].sort((a, b) => t.alpha[b] - t.alpha[a]), line = (cells, tag = 'td') => { const r = add(null, 'tr'); cells.forEach(([c, cls]) => add(r, tag, cls, c)); return r }
    list.cap.textContent = t.sinks.length ? `Sinks of this head, ${t.sinks.length}` : 'No token is a sink of this head.'
    table.setAttribute('aria-label', 'sinks of this head')
    table.replaceChildren(...t.sinks.length ? [line([['token', ''], ['at', 'r'], ['receives', 'r'], ['φ', 'r']], 'th'), ...order.slice(0, 8).map(j => line([[word(j), 'm'], [String(j), 'r'], [show(t.alpha[j], 3), 'r'], [show(phi[j], 3), 'r']]))] : [])
    if (order.length > 8) list.cap.textContent += ', of which 8 are shown'
    const mean = a => a.length ? a.reduce((x, y) => x + y, 0) / a.length : NaN, v = [...t.norms[1]], rest = v.filter((_, j) => !t.on.has(j))
    const items = [[show(t.alpha[0], 3), `on the first token “${word(0)}”`], [show(floats(get('scores'))[(facts().layers.length + index()) * facts().heads + get('head')], 3), 'on its best sink'], [share(mean([...t.kept].map(k => 1 - k))), 'of all attention goes to sinks'], ...(t.sinks.length && rest.length ? [[show(mean(t.sinks.map(j => v[j])) / mean(rest), 3), 'value norm of sinks / of others']] : [])]
    stats.replaceChildren(...items.map(([b, s]) => { const e = add(null, 'div'); add(e, 'b', '', b); e.append(s); return e }))
  }
  const head = () => {
    light()
    name.textContent = `Layer ${get('layer')} · head ${get('head')}`
    without(get('exclude'))
    const t = tile()
    if (!t) { ask(); plot.cap.textContent ||= 'The pattern is on its way.'; if (!shown) { paint(); follow() } return }
    root.removeAttribute('aria-busy')
    if (t === 'none') { shown = null; stats.replaceChildren(); table.replaceChildren(); plot.cap.textContent = 'This head’s pattern was left out of this page; its score is in the map.'; list.cap.textContent = 'Not in this page'; waves.replaceChildren(); plane.replaceChildren(); words.grid.querySelectorAll('.sink').forEach(s => s.classList.remove('sink')); none.textContent = ''; seen.hidden = true; paint(true); follow(); residual() }
    else { shown = t; paint(true); plot.cap.textContent = `Query down, key across${t.T > size * (devicePixelRatio || 1) ? '; each dot is the largest of some' : ''}${t.sinks.length ? '; violet: sinks' : ''}`; follow(); sides(); sinks(); tell(...cursor) }
    root.dataset.head = key()
  }
  const token = () => { if (get('token') < 0) cursor = [-1, -1]; paint(); follow(); if (shown) sides() }
  const exclude = () => { without(get('exclude')); if (shown) { paint(true); follow(); sides(); tell(...cursor) } }
  const told = () => { said.textContent = get('said'); wrong.textContent = get('error'); wrong.hidden = !get('error') }
  const all = () => { if (built !== get('version')) { built = get('version'); cache.clear(); asked = ''; cursor = [-1, -1]; build() } told(); head() }

  const typed = typing(area, model), known = () => { typed.told(); pick.hidden = facts().prompts < 2 || !!get('text') }
  pick.addEventListener('keydown', own)
  pick.addEventListener('change', () => set('prompt', Number(pick.value)))
  root.addEventListener('keydown', e => {
    if (e.target.closest('textarea, input, select') || e.altKey || e.ctrlKey || e.metaKey) return
    if (e.key === 'e') set('exclude', !get('exclude'))
    else if ((e.key === 'ArrowLeft' || e.key === 'ArrowRight') && e.target.closest('.snb-sm-m > .snb-b')) go(e.key === 'ArrowLeft' ? -1 : 1)
    else return
    e.preventDefault(); e.stopPropagation()
  })

  seen.hidden = true
  const again = () => { layer = null; paint(true); if (shown) follow() }
  const watch = new ResizeObserver(again), untheme = on_theme(root, again)
  watch.observe(box)
  const on = { 'change:version': all, 'change:layer change:head': head, 'change:token': token, 'change:exclude': exclude, 'change:score': light, 'change:text': known, 'change:said change:error': told, 'msg:custom': came }
  const each = Object.entries(on).flatMap(([k, f]) => k.split(' ').map(n => [n, f]))
  for (const [k, f] of each) model.on(k, f)
  all()
  return () => { typed.stop(); watch.disconnect(); untheme(); for (const [k, f] of each) model.off(k, f) }
}

// The kernel of a page that has none: state and tiles lie beside the map
function static_map(root) {
  root.dataset.on = ''
  const data = JSON.parse(root.querySelector('script').textContent), on = {}, changed = new Set()
  const leaf = i => Object.fromEntries(Object.entries(data.leaves[i]).map(([k, v]) => [k, v?.b64 === undefined ? v : from_base64(v.b64)]))
  const state = { ...data.state, ...leaf(data.state.prompt) }
  const fire = (k, ...a) => { for (const f of on[k] ?? []) f(...a) }
  const model = {
    get: k => state[k],
    set: (k, v) => { if (state[k] !== v) { state[k] = v; changed.add(k) } },
    on: (k, f) => { (on[k] ??= []).push(f) }, off: () => {},
    save_changes: () => {
      const now = [...changed]; changed.clear()
      if (now.includes('prompt')) { Object.assign(state, leaf(state.prompt)); state.token = -1; state.version++; state.said = `${state.words.length.toLocaleString('en-US')} tokens`; fire('change:version') }
      const fns = new Set(now.flatMap(k => on[`change:${k}`] ?? []))
      for (const f of fns) f()
    },
    send: ({ want: [v, l, h] }) => {
      const t = data.tiles[`${state.prompt},${l},${h}`]
      if (t) fire('msg:custom', { tile: [v, l, h], most: t.most }, [from_base64(t.b64)])
      else fire('msg:custom', { none: [v, l, h] }, [])
    },
  }
  render({ model, el: root })
}
export default { render }

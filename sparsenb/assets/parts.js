// What the parts of the dashboard share; set before each of them. Everything shown goes through textContent.
const unseen = /[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g
const signs = { '\n': '↵', '\t': '⇥', '\r': '␍' }
const sign = c => signs[c] ?? (c.codePointAt(0) < 256 ? '\\x' + c.charCodeAt(0).toString(16).padStart(2, '0') : '\\u' + c.codePointAt(0).toString(16).padStart(4, '0'))
const visible = t => String(t).replace(unseen, sign)

const add = (parent, tag, cls, text) => {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  if (text !== undefined) e.textContent = text
  return parent ? parent.appendChild(e) : e
}
const space = new DOMParser().parseFromString('<svg></svg>', 'text/html').body.firstChild.namespaceURI // written out it would look like an address
const draw = (parent, tag, attributes = {}, text) => {
  const e = document.createElementNS(space, tag)
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
  if (text !== undefined) e.textContent = text
  return parent ? parent.appendChild(e) : e
}
const button = (parent, text, label, act) => {
  const b = add(parent, 'button', '', text)
  b.type = 'button'; b.title = label; b.setAttribute('aria-label', label)
  b.addEventListener('click', act)
  return b
}
// Buttons of which one is pressed
const choice = (parent, label, names, act) => {
  const box = add(parent, 'span', 'snb-seg')
  box.setAttribute('role', 'group'); box.setAttribute('aria-label', label)
  const all = names.map(n => button(box, n, n, () => act(n)))
  return now => { for (const b of all) b.setAttribute('aria-pressed', b.textContent === now) }
}

const show = (v, digits = 4, plus = false) => {
  if (!Number.isFinite(v)) return Number.isNaN(v) ? '–' : v > 0 ? '∞' : '−∞'
  const a = Math.abs(v)
  const s = v && (a < 1e-4 || a >= 1e7) ? v.toExponential(2).replace('e+', 'e') : a >= 1000 ? Math.round(v).toLocaleString('en-US') : String(Number(v.toPrecision(digits)))
  return (plus && v > 0 ? '+' : '') + s.replace('-', '−')
}

// One token; its signs are faint, a line break is followed by a mark that a style may turn into a real break
const fill = (span, t, spaces = false) => {
  span.replaceChildren()
  if (t === '') { add(span, 'i', 'w', '∅'); return span }
  const core = spaces ? t.trim() : t, left = spaces ? t.length - t.trimStart().length : 0
  const gap = n => { if (n) add(span, 'i', 'w', n < 5 ? '␣'.repeat(n) : `␣×${n}`) }
  if (spaces && /^ *$/.test(t)) { gap(t.length); return span }
  if (spaces && !/^ *[^\s].*[^\s] *$|^ *[^\s] *$/.test(t)) spaces = false
  const body = spaces ? core : t
  if (spaces) gap(left)
  let at = 0
  for (const m of body.matchAll(unseen)) {
    if (m.index > at) span.append(body.slice(at, m.index))
    add(span, 'i', m[0] === '\n' ? 'w nl' : 'w', sign(m[0]))
    at = m.index + m[0].length
  }
  if (at < body.length) span.append(body.slice(at))
  if (spaces) gap(t.length - left - core.length)
  return span
}

// What an explainer said of a feature, which, and its scores as [value, interval, text]; nothing where nobody did
const explained = (box, said, scores = []) => {
  box.replaceChildren(); box.hidden = !said
  if (!said) return
  add(box, 'span', '', visible(said.text)); add(box, 'small', '', `explained by ${visible(said.by)}`)
  const line = add(box, 'div')
  for (const [value, interval, text] of scores) { const s = add(line, 'small'); add(s, 'b', '', value); s.append(` ${interval} ${visible(text)}`) }
}

const kinds = { u1: Uint8Array, i1: Int8Array, b1: Uint8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array, i8: BigInt64Array, u8: BigUint64Array }
const bytes = v => v?.buffer ? v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength) : new ArrayBuffer(0)
const put = (model, values) => { for (const [k, v] of Object.entries(values)) model.set(k, v); model.save_changes() }
const listen = (model, on) => {
  for (const [k, f] of Object.entries(on)) model.on(k, f)
  return () => { for (const [k, f] of Object.entries(on)) model.off(k, f) }
}

// What stands in for the kernel on a page that has none
const page_model = state => {
  const heard = {}, changed = new Set()
  return {
    get: k => state[k], set: (k, v) => { state[k] = v; changed.add(k) },
    save_changes: () => { const now = [...changed]; changed.clear(); for (const k of now) for (const f of heard['change:' + k] ?? []) f() },
    on: (k, f) => { for (const n of k.split(' ')) (heard[n] ??= []).push(f) }, off: () => {}, send: () => {},
  }
}
const from_base64 = s => Uint8Array.from(atob(s), c => c.charCodeAt(0))
// What is painted is painted anew when the theme changes; its sheet may come seconds after its name
const on_theme = (root, paint) => {
  const css = getComputedStyle(root), dark = matchMedia('(prefers-color-scheme: dark)')
  let poll = 0
  const watch = new MutationObserver(() => {
    let ink = css.color, left = 100
    paint(); clearInterval(poll)
    poll = setInterval(() => { if (css.color !== ink) { ink = css.color; paint() } if (!--left) clearInterval(poll) }, 100)
  })
  watch.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name'] }); dark.addEventListener('change', paint)
  return () => { clearInterval(poll); watch.disconnect(); dark.removeEventListener('change', paint) }
}

// Bars of a histogram; their heights may be logarithms of the counts
const bars = (svg, lo, hi, counts, { log = false, signed = false, width = 300, height = 104 } = {}) => {
  svg.replaceChildren()
  const n = counts.length, size = c => log ? Math.log10(1 + c) : c, most = Math.max(...counts, 1), bottom = height - 16
  const x = v => 4 + (v - lo) / (hi - lo || 1) * (width - 10), y = c => bottom - size(c) / size(most) * (bottom - 12)
  draw(svg, 'text', { x: 4, y: 8, 'font-size': 9 }, `${most.toLocaleString('en-US')}${log ? ', by logarithm' : ''}`)
  const all = counts.map((c, i) => {
    const l = lo + (hi - lo) * i / n, r = lo + (hi - lo) * (i + 1) / n
    const b = draw(svg, 'rect', { x: x(l), width: Math.max(x(r) - x(l) - 1, .6), y: c ? Math.min(y(c), bottom - .7) : bottom, height: c ? Math.max(bottom - y(c), .7) : 0, class: 'bar ' + (signed && l + r < 0 ? 'f1' : 'f0') })
    draw(b, 'title', {}, `${show(l)} to ${show(r)}: ${c.toLocaleString('en-US')}`)
    return b
  })
  draw(svg, 'line', { x1: 4, x2: width - 6, y1: bottom + .5, y2: bottom + .5, class: 'rule' })
  const raw = (hi - lo) / 4, mag = 10 ** Math.floor(Math.log10(raw || 1)), step = [1, 2, 2.5, 5, 10].map(s => s * mag).find(s => s >= raw * .999) || 1
  for (let k = Math.ceil(lo / step - 1e-9); k <= Math.floor(hi / step + 1e-9); k++) draw(svg, 'text', { x: x(k * step), y: bottom + 12, 'font-size': 9, 'text-anchor': k === 0 && lo === 0 ? 'start' : 'middle' }, show(Number((k * step).toPrecision(8))))
  return { x, value: p => Math.max(lo, Math.min(hi, lo + (p - 4) / (width - 10) * (hi - lo))), all, bottom, middle: i => lo + (hi - lo) * (i + .5) / n }
}

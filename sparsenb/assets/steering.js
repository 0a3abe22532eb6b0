// Change features, sweep the strength, compare what the model says next.
function render({ model, el }) {
  const root = add(el, 'div', 'snb snb-panel snb-steer')
  const top = add(root, 'div', 'snb-b')
  add(top, 'span', 'snb-h', 'Change features and see what the model says next')
  add(top, 'span', 'sp')
  const said = add(top, 'span', 'snb-c')
  said.setAttribute('aria-live', 'polite')
  const wrong = add(root, 'div', 'snb-wrong')
  wrong.setAttribute('role', 'alert')
  const form = add(root, 'div')
  const area = add(form, 'textarea')
  area.spellcheck = false; area.setAttribute('aria-label', 'prompt'); area.placeholder = 'A prompt to continue'
  const list = add(form, 'div', 'snb-changes')
  list.setAttribute('role', 'list'); list.setAttribute('aria-label', 'changes')
  const tools = add(form, 'div', 'snb-b')
  const more = add(tools, 'button', '', 'Add a feature')
  more.type = 'button'
  const where = add(tools, 'span', 'snb-c'), everywhere = add(tools, 'button', '', 'All tokens')
  everywhere.type = 'button'
  const tokens = add(form, 'div', 'breaks')
  const spots = () => model.get('positions').map(p => '0,' + p)
  const words = strip(tokens, 'tokens of the prompt: choose where to change', {
    choose: (_, j) => { if (j < model.get('first')) return; const p = model.get('positions'); set('positions', p.includes(j) ? p.filter(x => x !== j) : [...p, j].sort((a, b) => a - b)) },
    leave: () => set('positions', []),
    tip: (_, j) => `${visible(model.get('tokens')[j])} · position ${j} · ${j < model.get('first') ? 'the model’s own, left as it is' : model.get('positions').includes(j) ? 'changed here' : model.get('positions').length ? 'left as it is' : 'changed, as all'}`,
  })
  const setup = add(form, 'div', 'snb-setup')
  const fields = {}
  for (const [k, name, step, min] of [['low', 'Strength from', 'any'], ['high', 'to', 'any'], ['steps', 'steps', 1, 1], ['max_tokens', 'tokens to write', 1, 0], ['temperature', 'temperature', 'any', 0], ['seed', 'seed', 1, 0]]) {
    const e = fields[k] = labelled(setup, name, number(model.get(k), step, min))
    e.addEventListener('change', () => { const v = Number(e.value); if (e.value !== '' && Number.isFinite(v)) set(k, ['low', 'high', 'temperature'].includes(k) ? v : Math.round(v)); e.value = model.get(k) })
  }
  const run = add(setup, 'button', 'snb-run', 'Run')
  run.type = 'button'

  const out = add(root, 'div', 'snb-out')
  const pick = add(out, 'div', 'snb-b')
  const slide = add(null, 'input')
  slide.type = 'range'; slide.step = 1; slide.min = 0
  const dial = labelled(pick, 'Strength', slide).parentNode
  const value = add(pick, 'b'), kl = add(pick, 'span', 'snb-c')
  const cols = add(out, 'div', 'snb-cols')
  const left = add(cols, 'div'), right = add(cols, 'div')
  const lead = add(left, 'div', 'snb-q')
  const table = add(left, 'table', 'snb-t')
  table.setAttribute('aria-label', 'next tokens before and after')
  const textHead = add(right, 'div', 'snb-q', 'What follows, before and after')
  const texts = add(right, 'div', 'snb-texts'), before = add(texts, 'div'), after = add(texts, 'div')
  const chart = add(right, 'div', 'snb-curve')
  const tail = add(out, 'div', 'snb-b')
  const copy = add(tail, 'button', '', 'Copy code')
  copy.type = 'button'
  const done = add(tail, 'span', 'snb-c')
  done.setAttribute('aria-live', 'polite')
  const code = add(out, 'details', 'snb-code'), source = (add(code, 'summary', '', 'Show the code'), add(code, 'pre'))
  source.tabIndex = 0

  const set = (k, v) => { model.set(k, v); model.save_changes() }
  const send = m => model.send(m)
  const changes = () => {
    const now = model.get('changes'), focus = list.contains(document.activeElement) ? document.activeElement.getAttribute('aria-label') : null
    list.replaceChildren(...now.map((c, i) => {
      const r = add(null, 'div', 'snb-change')
      r.setAttribute('role', 'listitem')
      const kind = add(null, 'select')
      kind.setAttribute('aria-label', `what to do, change ${i + 1}`)
      for (const k of model.get('kinds')) add(kind, 'option', '', k).value = k
      kind.value = c.kind
      kind.addEventListener('change', () => set('changes', model.get('changes').map((o, j) => j === i ? { ...o, kind: kind.value } : o)))
      const find = add(null, 'input')
      find.type = 'text'; find.value = c.feature; find.setAttribute('aria-label', `feature, change ${i + 1}: number, token or text`)
      find.addEventListener('keydown', e => { own(e); if (e.key === 'Enter') find.blur() })
      find.addEventListener('change', () => send({ find: find.value, row: i }))
      r.append(kind, find)
      add(r, 'span', 'm', about(model.get('about')[c.feature] ?? ''))
      const drop = add(r, 'button', '', '×')
      drop.type = 'button'; drop.setAttribute('aria-label', `remove change ${i + 1}`); drop.disabled = now.length < 2
      drop.addEventListener('click', () => set('changes', model.get('changes').filter((_, j) => j !== i)))
      return r
    }))
    if (focus) list.querySelector(`[aria-label="${focus}"]`)?.focus()
    const plain = now.every(c => c.kind === 'ablate')
    for (const k of ['low', 'high', 'steps']) fields[k].parentNode.hidden = plain
  }
  const places = () => {
    const n = model.get('positions').length
    words.mark(spots())
    where.textContent = n ? `Changed at ${n} chosen token${n > 1 ? 's' : ''} only` : 'Changed at every token, those written too; click tokens to choose'
    everywhere.hidden = !n
  }
  const settings = () => { for (const k in fields) if (document.activeElement !== fields[k]) fields[k].value = model.get(k) }
  const share = p => p < 1e-4 ? '<0.01 %' : show(100 * p, 3) + ' %'
  let shown = null
  const piece = () => { if (shown !== model.get('tokens')) { shown = model.get('tokens'); words.build(shown.length ? [shown] : []) } places() }
  const one = () => {
    const all = model.get('results'), k = Math.min(model.get('at'), all.length - 1)
    out.hidden = !all.length
    if (!all.length) return
    const r = all[k]
    slide.max = all.length - 1; slide.value = k; dial.hidden = all.length < 2
    slide.setAttribute('aria-valuetext', r.strength)
    value.textContent = r.strength; kl.textContent = `KL(before ‖ after) ${r.kl} nats at the next token`
    const moved = r.movers.some(m => m[1] !== m[2])
    lead.textContent = moved ? 'Next tokens that change most: their probability before and after' : 'Nothing changes at the next token: where it is changed, the feature is as it was. The likeliest tokens:'
    table.replaceChildren()
    const head = add(add(table, 'thead'), 'tr')
    for (const t of ['token', 'before', 'after', 'logit after', 'change']) add(head, 'th', t === 'token' ? '' : 'r', t).scope = 'col'
    const body = add(table, 'tbody')
    for (const [t, lb, la, pb, pa] of r.movers) {
      const row = add(body, 'tr'), d = la - lb
      fill(add(row, 'td', 'm'), t)
      add(row, 'td', 'r', share(pb)); add(row, 'td', 'r', share(pa)); add(row, 'td', 'r', show(la, 3))
      add(row, 'td', 'r ' + (d < 0 ? 'neg' : d > 0 ? 'pos' : ''), (d > 0 ? '+' : '') + show(d, 3))
    }
    const written = model.get('wrote')
    textHead.hidden = texts.hidden = !written
    for (const [box, name, t] of [[before, 'before', model.get('plain')], [after, 'after', r.text]]) {
      box.replaceChildren(); add(box, 'b', '', name); fill(add(box, 'span', 'm'), t)
    }
    done.textContent = ''
    source.textContent = r.code; copy.disabled = !r.code; code.hidden = !r.code
    if (!r.code) done.textContent = model.get('no_code')
  }
  const curve = () => {
    const svg = model.get('curve')
    chart.replaceChildren(...svg ? [document.importNode(new DOMParser().parseFromString(svg, 'image/svg+xml').documentElement, true)] : [])
  }
  const state = () => {
    const missing = model.get('missing')
    wrong.textContent = missing || model.get('error'); wrong.hidden = !wrong.textContent
    form.hidden = !!missing
    said.textContent = model.get('said')
    run.disabled = model.get('running')
  }
  const results = () => { state(); curve(); one() }
  const all = () => { changes(); settings(); piece(); results() }

  const typed = typing(area, model, 2, 'prompt')
  area.addEventListener('keydown', e => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) { e.preventDefault(); start() } })
  const start = () => { typed.send(); send({ run: true }) }
  run.addEventListener('click', start)
  more.addEventListener('click', () => send({ more: true }))
  everywhere.addEventListener('click', () => set('positions', []))
  slide.addEventListener('keydown', own)
  slide.addEventListener('input', () => { set('at', Number(slide.value)); one() })
  copy.addEventListener('click', async () => {
    try { await navigator.clipboard.writeText(source.textContent); done.textContent = 'Copied.' }
    catch { code.open = true; getSelection().selectAllChildren(source); done.textContent = 'The browser does not allow it: the code is selected, copy it with the keys.' }
  })
  all()
  const on = { 'change:version': results, 'change:said change:error change:missing change:running': state, 'change:at': one, 'change:changes change:about': changes, 'change:positions': places, 'change:tokens': piece, 'change:prompt': typed.told,
    'change:low change:high change:steps change:max_tokens change:temperature change:seed': settings }
  for (const [k, f] of Object.entries(on)) model.on(k, f)
  return () => { typed.stop(); for (const [k, f] of Object.entries(on)) model.off(k, f) }
}
export default { render }

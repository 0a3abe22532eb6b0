// What taking a feature away at one token does to the prediction there: as a line, and as a box. Before it stands parts.js.
const effect_words = f => {
  const some = (what, rows) => rows.length ? `; ${what} ` + rows.slice(0, 3).map(([t, v]) => `“${visible(t)}” ${show(v, 3, true)}`).join(', ') : ''
  return (f.loss === null ? ' · without it, no token follows' : ` · without it, the loss of “${visible(f.next)}” goes ${show(f.loss, 3)} → ${show(f.loss_without, 3)} nats`) + some('it raises', f.up) + some('it lowers', f.down)
}
const effect_lines = (box, f) => {
  const line = add(box, 'div')
  if (f.loss !== null) {
    line.append('Without the feature here, the loss of the next token '); fill(add(line, 'span', 'm'), f.next, true)
    line.append(` goes from ${show(f.loss, 3)} to ${show(f.loss_without, 3)} nats (`)
    const by = f.loss_without - f.loss
    add(line, 'b', by > 0 ? 'pos' : 'neg', show(by, 3, true)); line.append(').')
  } else line.append('No token follows, so there is no loss to tell.')
  for (const [what, rows] of [['it raises', f.up], ['it lowers', f.down]]) {
    const l = add(box, 'div'); add(l, 'span', 'what', what)
    for (const [t, v] of rows) { l.append(' '); const pair = add(l, 'span', 'pair'); fill(add(pair, 'span', 'm'), t, true); pair.append(' '); add(pair, 'span', v < 0 ? 'neg' : 'pos', show(v, 3, true)) }
  }
  add(box, 'div', 'snb-c', f.context === 'window' ? 'in logits; the model read this window alone' : 'in logits; the model read all that came before')
}

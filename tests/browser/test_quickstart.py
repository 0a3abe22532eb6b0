"The quickstart as a person runs it: JupyterLab, all cells, then the feature browser by hand"
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parents[2]
FAST = dict(n_tokens='20_000', d_sae='512', k='16', train_tokens='80_000')

def test_quickstart_in_jupyterlab(notebook, tmp_path):
    nb = nbformat.read(ROOT/'examples/quickstart.ipynb', as_version=4)
    cell = next(c for c in nb.cells if 'parameters' in c.metadata.get('tags', []))
    cell.source = '\n'.join(f'{k} = {v}' for k,v in FAST.items())+"\nout = 'runs/quickstart'"
    path = tmp_path/'quickstart.ipynb'; nbformat.write(nb, path)
    page = notebook(path, size=(1400, 1000))
    page.run_all(seconds=500)
    page.wait_for_selector('.snb-browser', state='attached', timeout=60_000)
    first = page.python('browser.feature')
    head = lambda: page.locator('.snb-browser').first.inner_text()
    before = head()
    assert 'tokens active' in before and first in before
    page.locator('.snb-browser').first.scroll_into_view_if_needed()
    page.get_by_role('button', name='Next').first.click()
    page.wait_for_function('was => document.querySelector(".snb-browser").innerText !== was', arg=before)
    second = page.python('browser.feature')
    assert second!=first and second in head()
    page.python('browser.feature = 7')             # from a cell to the card
    page.wait_for_function('() => document.querySelector(".snb-browser").innerText.includes("7")')
    page.wait_for_timeout(800)                     # the histogram finishes drawing
    shot = page.shot('quickstart')
    assert shot.stat().st_size>30_000
    page.locator('.snb-browser').first.screenshot(path=shot.with_name('feature_browser.png'))
    assert page.fetched==[] and page.errors()==[]

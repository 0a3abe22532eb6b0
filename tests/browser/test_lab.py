"The browser fixtures themselves: cells run, failures are seen, nothing is fetched from elsewhere"
import pytest

def test_cells_run_and_nothing_is_fetched(notebook):
    nb = notebook(['from sparsenb.core import Registry', "import ipywidgets; w = ipywidgets.IntSlider(7).add_class('t-x'); w", 'print(w.value*6)'])
    nb.run_all(60)
    nb.wait_for_selector('.t-x .noUi-handle', state='attached')
    assert nb.python('w.value = 9; w.value+1')=='10'
    nb.wait_for_function("document.querySelector('.t-x .widget-readout').textContent==='9'")
    assert nb.shot('lab').stat().st_size>10_000
    assert nb.fetched==[] and nb.complaints==[]

def test_a_failing_cell_is_seen(notebook):
    nb = notebook(['1/0'])
    with pytest.raises(AssertionError, match='ZeroDivisionError'): nb.run_all(60)

def test_what_a_page_fetches_is_seen(static, tmp_path):
    (tmp_path/'a.html').write_text('<p>text<img src="https://example.invalid/x.png">')
    page = static(tmp_path/'a.html')
    assert page.inner_text('p')=='text' and page.fetched==['https://example.invalid/x.png']

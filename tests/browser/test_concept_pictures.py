"Pictures that belong to a trajectory's points: on a page from the disk, at every step the slider goes to"
import numpy as np
from sparsenb.trajectory import Trajectory
from sparsenb.views import page as html_page

S = '.snb-tp'
PIXELS = f"() => [...document.querySelectorAll('{S} .snb-tp-m canvas')].map(c => [c.width, c.height, ...c.getContext('2d').getImageData(1, 2, 1, 1).data].join())"

def test_the_panel_shows_what_the_model_drew_at_that_step(static, tmp_path):
    g = np.random.default_rng(0)
    drawn = {k: g.integers(0, 256, (5, 2, 6, 4, 3), dtype=np.uint8) for k in ('00', '11')} # 5 steps of 2 pictures
    t = Trajectory('Drawn', np.array([0, 10, 20, 40, 80]), {k: g.normal(size=(5, 2)) for k in drawn}, ('colour', 'size'), payload=drawn)
    html_page('Drawn', [t.static(path='11', step=20)], tmp_path/'t.html')
    p = static(tmp_path/'t.html', size=(900, 700))
    want = lambda k,s: [','.join(map(str, (4, 6, *x[2,1], 255))) for x in drawn[k][s]]
    def shows(k, s): p.wait_for_function(f"want => JSON.stringify(({PIXELS})()) === JSON.stringify(want)", arg=want(k, s))
    shows('11', 2)
    e = p.locator(f'{S} input[type=range]'); e.scroll_into_view_if_needed(); b = e.bounding_box()
    p.mouse.click(b['x']+8, b['y']+b['height']/2); shows('11', 0)
    p.mouse.click(b['x']+b['width']-8, b['y']+b['height']/2); shows('11', 4); p.keyboard.press('ArrowLeft'); shows('11', 3)
    p.keyboard.press('ArrowUp'); shows('00', 3)
    c = p.locator(f'{S} .snb-tp-m canvas').first
    assert c.bounding_box()['width']>40 and c.evaluate("e => getComputedStyle(e).imageRendering")=='pixelated' # larger than its 4 pixels, and not blurred
    assert p.fetched==[] and p.complaints==[]

"Charts and a scoreboard in JupyterLab: drawn, in the page's colours, with nothing fetched"

def test_charts_and_a_board_in_a_notebook(notebook):
    nb = notebook(['''from sparsenb.all import *
Scatter('FVU over L0', [8, 16, 32], [.3, .2, .1], group=['topk', 'topk', 'relu'], x_label='L0', y_label='FVU', log_x=True)''',
        "Heatmap('MMCS', [[.98, .77], [.96, .80]], ['topk', 'batch_topk'], ['superposition', 'tree'], lo=0, hi=1)",
        "board = scoreboard(['topk', 'pca'], ['tree'], 3, path='board', steps=20, background=True, workers=1); board.wait()",
        "print(board.status()['done'])", "board.picture('mmcs')"])
    nb.run_all(120)
    assert nb.locator('.snb svg circle').count()>=3 and nb.locator('.snb svg text.cell').count()>=4
    assert nb.python("board.status()['done']")=='6'
    assert nb.shot('charts').stat().st_size>10_000
    assert nb.fetched==[] and nb.complaints==[]

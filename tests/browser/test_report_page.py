"The demo's report in a browser, from the disk, with no network"

def test_cards_respond_offline(static, tmp_path):
    from sparsenb.demo import demo
    demo(tmp_path, n_tokens=12_000, d_sae=256, k=8, train_tokens=20_480, held_out=4_000)
    p = static(tmp_path/'report.html')
    card = lambda: p.locator('[data-card]:visible').get_attribute('data-card')
    was = card(); p.get_by_role('button', name='next feature').click()
    assert card()!=was and p.locator('text=By quantile >> visible=true').count()==1
    p.shot('report', full_page=True)
    assert p.fetched==[] and p.complaints==[]

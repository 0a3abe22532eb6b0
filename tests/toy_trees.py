"Syntax trees that no model has read: a layer is right, one is wrong in a few places"
import io, tokenize
from types import SimpleNamespace
import numpy as np
from sparsenb.core import widgets
from sparsenb.trees import Tree, binary, python_tree

def toy_trees(texts, layers=('early', 'late')):
    "A tree view of Python texts; the first layer swaps the last two leaves' parent for a pair of the first two, the last is right"
    def read(text):
        tree,_ = python_tree(text)
        true,leaves = binary(tree),[]
        begin = np.r_[0, np.cumsum([len(l)+1 for l in text.split('\n')])]
        for t in tokenize.generate_tokens(io.StringIO(text).readline):
            if t.string.strip() and t.type!=tokenize.COMMENT: leaves.append((begin[t.start[0]-1]+t.start[1], begin[t.end[0]-1]+t.end[1]))
        n = len(leaves)
        wrong = Tree('Module', (Tree('Pair', (0, 1)), Tree('', tuple(range(2, n))) if n>3 else 2)) if n>2 else true
        return SimpleNamespace(text=text, leaves=np.array(leaves), true=true, said={layers[0]: binary(wrong), layers[1]: true}, scores={layers[0]: (.25, .5), layers[1]: (1., 1.)})
    return widgets['tree_view'](read, texts)

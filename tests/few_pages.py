"The bundled model and a store of a few pages of its own kind of text"
from sparsenb.corpus import load_corpus
from sparsenb.models import load_model
from sparsenb.store import ActivationStore

def few_pages(folder, n_tokens):
    "The model and its activations on the first 1,500 characters of held-out modules"
    model = load_model('stdlib-4l', device='cpu')
    texts = load_corpus([(d.name, d.text[:1500]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(24))])
    return model,ActivationStore.collect(model, texts, site='resid_post.2', n_tokens=n_tokens, path=folder/'acts', seq_len=96, progress=False)

"""Everything for a notebook: `from sparsenb.all import *`."""
from sparsenb.core import dictionaries, probes, analyses, testbeds, formats, widgets, settings
from sparsenb.corpus import load_corpus
from sparsenb.models import load_model, Model
from sparsenb.hooks import capture, replaced, edited, ablate, add, patch
from sparsenb.store import ActivationStore
from sparsenb.dictionary import Dictionary, Codes, Step, load_dictionary
from sparsenb.metrics import evaluate
from sparsenb.train import fit, Run, Callback, Progress
from sparsenb.index import FeatureIndex
from sparsenb.views import Table, Lines, Histogram, Tokens, Card
from sparsenb.scoreboard import scoreboard, Scoreboard
from sparsenb.fronts import fronts, Fronts
from sparsenb.report import run_report

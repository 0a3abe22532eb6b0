"""Everything for a notebook: `from sparsenb.all import *`."""
from sparsenb.core import dictionaries, probes, analyses, testbeds, evaluations, explainers, formats, widgets, settings
from sparsenb.corpus import load_corpus
from sparsenb.tables import load_table, digit_images
from sparsenb.models import load_model, Model
from sparsenb.hooks import capture, replaced, edited, ablate, add, patch
from sparsenb.recurrent import state_edited, recurrent_states
from sparsenb.adapters import Adapter, Prefix, Prompt, adapter, prefix, room, adapted, fit_adapters, moved_by
from sparsenb.attention import attention_edits, mask_keys, redistribute, null_logit, key_bias, fix_coordinates
from sparsenb.store import ActivationStore
from sparsenb.dictionary import Dictionary, Codes, Step, load_dictionary
from sparsenb.supervised import Supervised, supervised_codes, as_dictionary
from sparsenb.convert import read_dictionary, write_dictionary, convert
from sparsenb.recorder import Checkpoints
from sparsenb.trajectory import trajectory, through_layers, Trajectory
from sparsenb.concepts import concept_space, concept_signal, learned_time, ConceptSpace, Prompt
from sparsenb.lenses import lens
from sparsenb.metrics import evaluate
from sparsenb.labels import Labels, code_labels, label_tokens
from sparsenb.probing import holdout
from sparsenb.probe_sweep import ProbeSweep, probe_sweep, untrained
from sparsenb.train import fit, Run, Callback, Progress
from sparsenb.many import fit_many
from sparsenb.stream import LiveStream
from sparsenb.index import Directions, FeatureIndex
from sparsenb.notes import Notes
from sparsenb.rules import Rule
from sparsenb.judging import scored, mask_iou, encoder, likelihood_of
from sparsenb.explanations import Record, Explanations
from sparsenb.functions import find
from sparsenb.prompts import prompt_features, shared_features
from sparsenb.steering import Steering, Change
from sparsenb.sinks import sinks, Sinks
from sparsenb.static import static_browser
from sparsenb.graphs import check_graph, error_node, export_graph, feature_node, logit_node, read_graph, token_node
from sparsenb.export import export_figure, export_numbers, export_neuronpedia
from sparsenb.planner import plan, plan_collect, Forecast
from sparsenb.outlook import plan_index, plan_evaluate
from sparsenb import jobs
from sparsenb.jobs import run_reports
from sparsenb.views import Table, Lines, Histogram, Tokens, Card
from sparsenb.charts import Scatter, Heatmap
from sparsenb.scoreboard import scoreboard, Scoreboard
from sparsenb.fronts import fronts, Fronts
from sparsenb.compare import compare, Comparison
from sparsenb.report import run_report

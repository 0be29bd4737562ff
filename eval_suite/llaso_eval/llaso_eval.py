"""LLaSO-Eval as an `evaluate` module: a thin door to the installed `eval_suite` package."""

import datasets
import evaluate

from eval_suite.score import score_texts  # evaluate copies this file elsewhere, so the import is absolute

_DESCRIPTION = """
The metrics of LLaSO-Eval, the benchmark of large speech-language models: word, character and phoneme error rates,
accuracy over closed sets with coverage and trivial baselines, errors of numbers, slot F1, under a sound protocol
(`strict`) and under the authors' own arithmetic (`paper`).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the model's answers.
    references (list of str): the right answers.
    tasks (str or list of str): the task code of every answer, or one for all, e.g. "ASR" or "SGC".
    choices (list of str or list of lists, optional): the labels offered, for all answers or by answer.
    protocol (str): "strict" (default) or "paper".
    normalization (str): of transcripts under strict, "whisper_english" (default) or "none".
Returns:
    dict: task code -> its metrics, "n", and "outcomes" with the number of answers that were answered, abstained,
    ambiguous, malformed.
Examples:
    >>> metric = evaluate.load("eval_suite/llaso_eval")
    >>> metric.compute(predictions=["It is a female voice."], references=["Female"], tasks="SGC",
    ...                choices=["Male", "Female"])["SGC"]["accuracy"]
    1.0
"""

_CITATION = """
@article{llaso2025,
  title={LLaSO: A Foundational Framework for Reproducible Research in Large Language and Speech Model},
  journal={arXiv preprint arXiv:2508.15418},
  year={2025}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class LlasoEval(evaluate.Metric):
    """See the module's card."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions, references, tasks, choices=None, protocol="strict", normalization="whisper_english"
    ):
        if self.num_process > 1 and not isinstance(tasks, str) and len(tasks) != len(predictions):
            raise ValueError(
                f"process 0 scores the {len(predictions)} answers of all {self.num_process} processes but has "
                f"{len(tasks)} tasks: give it those of all, process after process, or one code for all"
            )
        return score_texts(predictions, references, tasks, choices, protocol, normalization)

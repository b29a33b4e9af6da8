"""Runs under transformers 4.57; see test_question_answering.py. Each line of its input is a job, answered by a line."""

import functools
import json
import os
import sys

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline


@functools.cache
def pipe(folder):
    model = AutoModelForQuestionAnswering.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    return pipeline("question-answering", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


output = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is no answer
for line in sys.stdin:
    job = json.loads(line)
    options = {"max_seq_len": 384, "doc_stride": 128, "max_answer_len": 30, "align_to_words": True, **job["options"]}
    answers = [pipe(job["model"])(question=each["question"], context=each["context"], **options) for each in job["records"]]
    output.write(json.dumps(answers) + "\n")

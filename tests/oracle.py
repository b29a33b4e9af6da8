"""Runs under transformers 4.57: ``python oracle.py JOB.json ANSWERS.json``; see test_question_answering.py."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

job = json.loads(Path(sys.argv[1]).read_text())
model = AutoModelForQuestionAnswering.from_pretrained(job["model"], torch_dtype=torch.float32, attn_implementation="eager")
pipe = pipeline("question-answering", model=model, tokenizer=AutoTokenizer.from_pretrained(job["model"]))
options = {"max_seq_len": 384, "doc_stride": 128, "max_answer_len": 30, "align_to_words": True, **job["options"]}
answers = [pipe(question=each["question"], context=each["context"], **options) for each in job["records"]]
Path(sys.argv[2]).write_text(json.dumps(answers))

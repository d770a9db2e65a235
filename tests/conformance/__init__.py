"""The conformance suite of format specs: what every spec that reads and writes adapters must do.

It runs on every shipped spec, and on one of your own:

    pytest tests/conformance --spec my-format.toml

* `test_spec.py`: the file fits `schemas/format.schema.json`; its key templates and dims are
  inverted by their own inverses; every `@fact` that `[write]` names is one there is.
* `test_catalogue.py`: some thirty small PEFT adapters (`tests/convert/catalogue.py`: LoRA of one
  and of many ranks and scales, DoRA, (IA)³, biases, embeddings, experts, T5, BERT, GPT-2, ...) are
  each written in your format. Either what was written means the same when it is read back
  (the reference is PEFT's own rule, computed from the raw bytes of the source), in the same bytes
  on each run and with any number of threads; or the adapter is refused by a known code that names
  the modules, and nothing is left behind. At least one adapter must get through.
* `test_sample.py`: a spec that reads its own mistakes back unchanged passes all of the above. Only
  a file of the format's own library shows them, so give one, with the same adapter as PEFT has it:

      pytest tests/conformance --spec my-format.toml --sample theirs/ --same-as peft/ --base base/

A spec without `[write]` gets the first part, and the last one if there is a sample. Put the suite
beside your spec by copying `tests/builders.py`, `tests/convert/` and `tests/conformance/`; it needs
pytest, numpy and adaptertools.
"""

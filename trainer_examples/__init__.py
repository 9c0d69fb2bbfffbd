"""Examples to read and to copy from: `train.py` first, then `train_ddp.py`; `demo.py` compares the policies."""

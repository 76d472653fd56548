"""A checkpoint's tokenizer and chat template, which are foreign code, in processes of their own.

fork_server.py   the process that imports transformers once and forks the others
library.py       what the forked processes do: encode, render, decode
trial.py         what `build` tries out on a tokenizer before it builds
tokenizer_process.py   a tokenizer seen from outside, with a process for each role
processes.py     starts and asks processes, and gives them up at a limit
limits.py        the limits of time, memory and size
framing.py       messages between the two sides
"""

"""Chains of thought in lines that a program reads: written, parsed, compared.

EgoReasoner's (arXiv 2603.06561) tasks about movements in kitchens, those of
HD-EPIC (arXiv 2502.04144). No code of it is published: tasks, steps and parts
of the reward are from others' accounts of the paper, lines and formulas are
chosen here.
"""

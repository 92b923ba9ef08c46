"""One file per framework, each the same small set of functions on flat lists of arrays.

Read one from top to bottom, then put another beside it: the same names, in the same order, in that framework's idiom.
"""

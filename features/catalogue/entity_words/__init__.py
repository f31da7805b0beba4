"""The words of an entity, by subject: numbers over a window, its latest payments, its known frauds, its neighbours.

arguments   checks the arguments of all words, and turns them into expressions
words       the base of all words: it makes features, measures over a window, and meanings in English
"""

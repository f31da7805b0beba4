"""The words of an entity, by what they are about: numbers over a window, what it did last, its known frauds.

arguments   checks the arguments of all words, and turns them into expressions
words       what all words share: how they make a feature, a measure over a window, a meaning in English
"""

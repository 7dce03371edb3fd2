"""Four papers taken apart and rebuilt, each told four ways: figure, words, formula, code."""

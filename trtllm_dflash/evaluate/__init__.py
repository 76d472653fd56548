"""What an engine's numbers are worth: perplexity, what it changes against another engine, and how
many drafts hold.
"""

"""Running an engine directory: sessions (one per backend), the decode loop over slots, and the
Engine that users call.
"""

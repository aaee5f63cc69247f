"""Rules of the config values, by theme; eomt_d2/engine/config_validation.py asks them all."""

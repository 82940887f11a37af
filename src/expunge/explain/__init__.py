"""Why a model knows what it knows: attribution to records, localization in weights, read-outs by layer."""

__all__: list[str] = []

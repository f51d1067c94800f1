"""Adapters to the trainers of other libraries: one module a library, which alone imports it.

There is nothing to import from here: import the module of your library, such as ``bnmonitor.integrations.huggingface``.
"""

"""A whole federation on one machine: broker, server and clients as processes of this one.

Here belongs what plans, starts, watches and ends those processes. What they do inside is the
business of `fedlog.server` and `fedlog.client`; nothing here learns, and nothing here may load
TensorFlow, which would cost the supervisor six seconds and 400 MB.
"""

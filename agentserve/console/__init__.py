"""The web page that shows what the gateway does: static files, and how they are served."""

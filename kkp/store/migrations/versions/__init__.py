"""The revisions, one for each layout; a file that was released is never changed."""

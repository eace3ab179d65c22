"""What a person reads of a build: lines on a screen, Markdown, one page of HTML with its charts."""

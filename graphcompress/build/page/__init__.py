"""The report as one page of HTML: no network, light and dark, charts as inline SVG."""

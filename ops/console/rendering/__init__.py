"""How a page looks: the HTML of what it shows (`templates`), its charts, and an analyst's words for signals."""

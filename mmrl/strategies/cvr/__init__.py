"""CVR-LLM: descriptions that the question asks for, examples, comparisons."""

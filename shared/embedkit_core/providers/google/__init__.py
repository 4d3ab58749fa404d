"""Google's embedding models: the Gemini API and Vertex AI, through the `google-genai` SDK."""

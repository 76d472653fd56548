"""An endpoint of OpenAI's form over the scheduler, on FastAPI and uvicorn."""

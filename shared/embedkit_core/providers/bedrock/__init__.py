"""Models on Amazon Bedrock, through botocore on threads."""

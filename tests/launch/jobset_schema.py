"""The fields of a JobSet that launch/gke_jobset.yaml uses, as jobset.x-k8s.io/v1alpha2 and Kubernetes define them.

Every object is closed: a misspelt field is an error here, as a strict API server would have it.
"""

from typing import Any

TEXT = {'type': 'string'}
COUNT = {'type': 'integer', 'minimum': 0}
TEXTS = {'type': 'object', 'additionalProperties': TEXT}
# What an environment of Kubernetes allows as a name of a JobSet, which also names pods and a service.
NAME = {'type': 'string', 'pattern': '^[a-z]([-a-z0-9]*[a-z0-9])?$', 'maxLength': 40}


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
  return {'type': 'object', 'properties': properties, 'required': list(required), 'additionalProperties': False}


def array(items: dict[str, Any]) -> dict[str, Any]:
  return {'type': 'array', 'items': items, 'minItems': 1}


METADATA = closed(('name',), name=NAME, labels=TEXTS, annotations=TEXTS)
CONTAINER = closed(
  ('name', 'image'),
  name=NAME,
  image=TEXT,
  args=array(TEXT),
  securityContext=closed(privileged={'type': 'boolean'}),
  ports=array(closed(('containerPort',), containerPort=COUNT)),
  resources=closed(limits={'type': 'object', 'additionalProperties': COUNT}),
  volumeMounts=array(closed(('name', 'mountPath'), name=NAME, mountPath=TEXT)),
)
POD = closed(
  ('containers',),
  # `podFailurePolicy` needs Never.
  restartPolicy={'const': 'Never'},
  terminationGracePeriodSeconds=COUNT,
  hostNetwork={'type': 'boolean'},
  dnsPolicy={'enum': ['ClusterFirst', 'ClusterFirstWithHostNet', 'Default', 'None']},
  nodeSelector=TEXTS,
  containers=array(CONTAINER),
  volumes=array(closed(('name',), name=NAME, emptyDir=closed(medium={'enum': ['', 'Memory']}))),
)
POD_FAILURE_RULE = closed(
  ('action',),
  action={'enum': ['FailJob', 'FailIndex', 'Ignore', 'Count']},
  onPodConditions=array(closed(('type', 'status'), type=TEXT, status={'enum': ['True', 'False', 'Unknown']})),
)
JOB = closed(
  ('template',),
  parallelism=COUNT,
  completions=COUNT,
  backoffLimit=COUNT,
  podFailurePolicy=closed(('rules',), rules=array(POD_FAILURE_RULE)),
  template=closed(('spec',), metadata=closed(labels=TEXTS), spec=POD),
)
FAILURE_RULE = closed(
  ('action',),
  name={'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
  action={
    'enum': [
      'FailJobSet',
      'RestartJobSet',
      'RestartJobSetAndIgnoreMaxRestarts',
      'RestartJob',
      'RestartJobAndIgnoreMaxRestarts',
    ]
  },
  onJobFailureReasons=array(
    {
      'enum': [
        'BackoffLimitExceeded',
        'DeadlineExceeded',
        'FailedIndexes',
        'MaxFailedIndexesExceeded',
        'PodFailurePolicy',
      ]
    }
  ),
  targetReplicatedJobs=array(NAME),
)
JOBSET = closed(
  ('apiVersion', 'kind', 'metadata', 'spec'),
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=METADATA,
  spec=closed(
    ('replicatedJobs',),
    failurePolicy=closed(maxRestarts=COUNT, rules=array(FAILURE_RULE)),
    replicatedJobs=array(closed(('name', 'template'), name=NAME, replicas=COUNT, template=closed(('spec',), spec=JOB))),
  ),
)

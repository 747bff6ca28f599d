"""Once for an AWS account and a bucket: what cluster/gpu.yaml needs there, written into it.

python cluster/aws_once.py --bucket BUCKET [--region us-west-2]

Makes, or finds, a firewall that lets SSH in from your address alone and the nodes talk to each other (Ray's own would
let the whole world try), and two roles: workers may read and write the bucket; the head may also start and end nodes.
Again after your address has changed: the firewall then knows the new one only.
"""

import argparse
import ipaddress
import json
import re
import urllib.request
from pathlib import Path

import boto3

NAME = "lead-ray"
AMI_NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"  # driver, Docker, the GPU's container runtime
SPOT = "arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/*"  # AWS's own, made with an account's first
NODES = ("Describe*", "RunInstances", "TerminateInstances", "CreateTags", "DeleteTags")


def firewall(ec2, address: str) -> str:
    """The id of a security group in the default network: SSH from one address, everything among its members."""
    network = ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    mine = [{"Name": "group-name", "Values": [NAME]}, {"Name": "vpc-id", "Values": [network]}]
    if found := ec2.describe_security_groups(Filters=mine)["SecurityGroups"]:
        group = found[0]["GroupId"]
        if rules := found[0]["IpPermissions"]:
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)
    else:
        group = ec2.create_security_group(GroupName=NAME, Description="lead_ray nodes", VpcId=network)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": f"{address}/32"}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    return group


def role(iam, name: str, statements: list[dict]) -> str:
    """A role of this name for EC2 machines that may do this and nothing else; returns its ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(_policy([trust])))
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    except iam.exceptions.EntityAlreadyExistsException:
        pass  # made before; what it may do is set anew
    iam.put_role_policy(RoleName=name, PolicyName=NAME, PolicyDocument=json.dumps(_policy(statements)))
    return iam.get_role(RoleName=name)["Role"]["Arn"]


def _policy(statements: list[dict]) -> dict:
    return {"Version": "2012-10-17", "Statement": statements}


def newest_image(ec2, name: str) -> str:
    """The id of Amazon's newest image of this name.

    Raises: ValueError if there is none.
    """
    images = ec2.describe_images(Owners=["amazon"], Filters=[{"Name": "name", "Values": [name]}])["Images"]
    if not images:
        raise ValueError(f"no image named {name!r} in this region: give another with --image-name")
    return max(images, key=lambda image: image["CreationDate"])["ImageId"]


def prepare(bucket: str, region: str, address: str, file: Path, image_name: str = AMI_NAME) -> None:
    """Make everything, and write it into the cluster file."""
    ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
    arn = f"arn:aws:s3:::{bucket}"
    storage = [
        {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": arn},
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": f"{arn}/*"},
        {"Effect": "Allow", "Action": "s3:AbortMultipartUpload", "Resource": f"{arn}/*"},
    ]
    worker = role(iam, f"{NAME}-worker", storage)
    nodes = {"Effect": "Allow", "Action": [f"ec2:{action}" for action in NODES], "Resource": "*"}
    give = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker}
    spot = {"Effect": "Allow", "Action": "iam:CreateServiceLinkedRole", "Resource": SPOT}
    role(iam, f"{NAME}-head", [*storage, nodes, give, spot])
    text = file.read_text()
    for key, value in {"ImageId: ": newest_image(ec2, image_name), "region: ": region}.items():
        text = re.sub(rf"(?m)^( +{key})\S+$", rf"\g<1>{value}", text)
    text = re.sub(r"SecurityGroupIds: \[.*\]", f"SecurityGroupIds: [{firewall(ec2, address)}]", text)
    file.write_text(text.replace("s3://BUCKET/", f"s3://{bucket}/"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="an existing S3 bucket for data and runs")
    parser.add_argument("--region", default="us-west-2")
    parser.add_argument("--address", help="where SSH comes from; this machine's as the internet sees it")
    parser.add_argument("--image-name", default=AMI_NAME)
    given = parser.parse_args()
    address = given.address
    if address is None:
        with urllib.request.urlopen("https://checkip.amazonaws.com") as answer:
            address = answer.read().decode().strip()
    address = str(ipaddress.IPv4Address(address))
    file = Path(__file__).with_name("gpu.yaml")
    prepare(given.bucket, given.region, address, file, given.image_name)
    print(f"{file} is ready: SSH from {address}, data and runs in s3://{given.bucket}. Next: ray up {file}")


if __name__ == "__main__":
    main()
